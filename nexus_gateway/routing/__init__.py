"""Which instance gets the next attempt. Pure policy: clock and randomness are arguments.

- `instance`: one key of one provider, with its health, circuit, quotas and toggle
- `health`: success rate and latency, decaying with time
- `breaker`: the circuit of an instance
- `quotas`: what an upstream's rate-limit headers leave
- `policies`: smart, fastest, round-robin
- `resolver`: which instances a request's `model` means
- `scheduler`: chooses among them; retry and hedge budgets, backoff
- `attempts`: an attempt at one instance, and the attempts of one request
- `explain`: why the scheduler chose as it did
- `pool`: the instances that the environment configures
"""

from nexus_gateway.routing.instance import Instance
from nexus_gateway.routing.policies import Fastest, Policy, RoundRobin, Smart

__all__ = ["Fastest", "Instance", "Policy", "RoundRobin", "Smart"]
