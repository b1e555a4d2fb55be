# The gateway's image. Plugins: FROM it, USER root, RUN /opt/nexus/bin/pip install nexus-acme, USER 10001:10001.
FROM python:3.13-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/nexus
WORKDIR /src
COPY deploy/requirements.txt deploy/
RUN /opt/nexus/bin/pip install --require-hashes -r deploy/requirements.txt
COPY setup.cfg pyproject.toml MANIFEST.in README.md LICENSE ./
COPY nexus_gateway nexus_gateway
COPY plugins plugins
RUN /opt/nexus/bin/pip install --no-deps --no-build-isolation .

FROM python:3.13-slim
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/nexus nexus
COPY --from=build /opt/nexus /opt/nexus
ENV PATH=/opt/nexus/bin:$PATH HOST=0.0.0.0 PORT=3000 LOG_FORMAT=json PYTHONUNBUFFERED=1 \
    LEDGER=sqlite:////var/lib/nexus/ledger.sqlite3
# By number: Kubernetes cannot see that a named user is not root.
USER 10001:10001
WORKDIR /var/lib/nexus
EXPOSE 3000
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ.get('PORT', '3000') + '/health/ready', timeout=2)"]
ENTRYPOINT ["nexus-gateway"]
CMD ["serve"]
