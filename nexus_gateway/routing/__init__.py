"""Which instance gets the next attempt. Pure policy: clock and randomness are arguments.

- `instance`: one key of one provider, and its deployments: one for each model, with its health,
  circuit and quotas
- `health`: success rate and latency, decaying with time
- `breaker`: the circuit of a deployment
- `quotas`: what an upstream's rate-limit headers leave
- `policies`: smart, fastest, round-robin
- `resolver`: which instances a request's `model` means
- `scheduler`: chooses among their deployments; retry and hedge budgets, backoff
- `attempts`: an attempt at one deployment, and the attempts of one request
- `explain`: why the scheduler chose as it did
- `pool`: the instances that the environment configures
"""

from nexus_gateway.routing.instance import Deployment, Instance
from nexus_gateway.routing.policies import Fastest, Policy, RoundRobin, Smart

__all__ = ["Deployment", "Fastest", "Instance", "Policy", "RoundRobin", "Smart"]
