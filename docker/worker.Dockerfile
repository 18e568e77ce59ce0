# A worker: torch and the mathematics. Build from the root: docker build -f docker/worker.Dockerfile .
#
# As it stands it gets the default build of torch, which on Linux brings CUDA and runs on CPUs too.
# For a small image without CUDA name the index of torch's CPU wheels: --build-arg TORCH_INDEX=URL
FROM python:3.11-slim AS build
ARG TORCH_INDEX=""
ARG TORCH="torch"
RUN python -m venv /opt/brenier
ENV PATH=/opt/brenier/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY constraints.txt .
RUN pip install -c constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$TORCH"
COPY . .
RUN pip install -c constraints.txt ".[worker]"

FROM python:3.11-slim
RUN useradd --system --uid 10001 --no-create-home brenier
COPY --from=build /opt/brenier /opt/brenier
ENV PATH=/opt/brenier/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# one thread a worker: scale by workers, more threads than cores cost a factor of ten
ENV BRENIER_THREADS=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
USER 10001
WORKDIR /tmp
# a worker is healthy while it takes jobs; see workers/alive.py
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s CMD ["python", "-m", "workers.alive"]
CMD ["celery", "--quiet", "-A", "workers.app", "worker", "-P", "prefork", "-c", "1", \
    "-n", "worker@%h", "--without-gossip", "--without-mingle", "--loglevel", "WARNING"]
