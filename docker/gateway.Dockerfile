# The gateway: HTTP, no torch. Build from the root: docker build -f docker/gateway.Dockerfile .
FROM python:3.11-slim AS build
RUN python -m venv /opt/brenier
ENV PATH=/opt/brenier/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY . .
RUN pip install -c constraints.txt ".[gateway]"

FROM python:3.11-slim
RUN useradd --system --uid 10001 --no-create-home brenier
COPY --from=build /opt/brenier /opt/brenier
ENV PATH=/opt/brenier/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# inside a container every client is beyond loopback: without BRENIER_API_KEYS the gateway refuses
# to start, unless PUBLISH says that its port is published on the host's loopback only
ENV BRENIER_HOST=0.0.0.0
USER 10001
WORKDIR /tmp
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD ["python", "-c", \
    "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["sh", "-c", \
    "case $PUBLISH in 127.0.0.1) export BRENIER_INSECURE=true;; esac; exec \"$@\"", "gateway"]
CMD ["uvicorn", "api.main:app", "--factory", "--host", "0.0.0.0", "--port", "8000", \
    "--loop", "uvloop", "--http", "httptools", "--no-server-header", "--no-access-log", \
    "--timeout-graceful-shutdown", "5"]
