# One base, one lock, a target for each part: `service`, `trainer` and `studio`. `make images` builds them. The embedded model
# is inside; other flavours' weights are downloaded on first use.

# A CUDA runtime by default: torch's wheels bring CUDA's libraries. For a CPU: BASE_IMAGE=python:3.11-slim-bookworm and
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu. Any Debian or Ubuntu with Python 3.11 or 3.12 will do.
ARG BASE_IMAGE=nvidia/cuda:13.0.1-base-ubuntu24.04

# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS base
SHELL ["/bin/sh", "-euc"]
# hadolint ignore=DL3008
RUN if ! command -v tini || ! command -v python3; then \
      apt-get update; \
      apt-get install --yes --no-install-recommends ca-certificates tini; \
      command -v python3 || apt-get install --yes --no-install-recommends python3; \
      rm -rf /var/lib/apt/lists/*; \
    fi

# The dependencies as constraints.txt pins them. This layer is rebuilt only when the lock or pyproject.toml changes.
FROM base AS dependencies
ARG PIP_EXTRA_INDEX_URL=""
# Optional dependencies of pyproject.toml, separated by spaces: trackers, for report_to mlflow and wandb.
ARG EXTRAS=""
# hadolint ignore=DL3008
RUN if ! python3 -c 'import ensurepip, venv'; then \
      apt-get update; \
      apt-get install --yes --no-install-recommends python3-venv; \
      rm -rf /var/lib/apt/lists/*; \
    fi; \
    python3 -m venv /opt/pip; \
    python3 -m venv --without-pip /opt/venv
WORKDIR /src
COPY pyproject.toml constraints.txt ./
RUN EXTRAS="$EXTRAS" python3 -c 'import os, tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
extras = [line for name in os.environ["EXTRAS"].split() for line in project["optional-dependencies"][name]]; \
print(*project["dependencies"], *extras, sep="\n")' > /tmp/requirements.txt; \
    /opt/pip/bin/pip --no-cache-dir --python /opt/venv/bin/python install \
      --constraint constraints.txt --requirement /tmp/requirements.txt; \
    test ! -e /opt/venv/bin/pip

FROM dependencies AS code
COPY README.md LICENSE ./
COPY lithograph lithograph
COPY longcat longcat
COPY service service
COPY studio studio
COPY trainer trainer
RUN /opt/pip/bin/pip --no-cache-dir --python /opt/venv/bin/python install --no-deps --prefix /opt/lithograph .

FROM base AS runtime
# A numeric user, so that Kubernetes can verify that it is not root. Any other uid of group 0 works too.
RUN install --directory --owner 10001 --group 0 --mode 0775 /adapters /models /output /data /studio
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=code /opt/lithograph /opt/venv
# USER and HOME are set because a uid without a passwd entry has neither. All other writes go below /tmp.
ENV PATH=/opt/venv/bin:$PATH \
    HF_HOME=/models \
    HOME=/tmp \
    USER=lithograph \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Lithograph" \
      org.opencontainers.image.description="Text-to-image inference and fine-tuning for LongCat-Image" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 10001:0
WORKDIR /tmp
ENTRYPOINT ["tini", "--", "lithograph"]

FROM runtime AS trainer
# The demo's pictures, for k8s/overlays/cpu-demo/job.
COPY examples/ink /examples/ink
ENV LITHOGRAPH_TRAIN_OUTPUT_DIR=/output/training \
    LITHOGRAPH_TRAIN_CACHE_DIR=/output/cache
HEALTHCHECK NONE
CMD ["train", "--config", "/config/config.json"]

FROM runtime AS studio
# It listens on all addresses, and therefore does not start without LITHOGRAPH_SERVER_TOKEN.
ENV LITHOGRAPH_SERVER_HOST=0.0.0.0 \
    LITHOGRAPH_SERVER_PORT=8001 \
    LITHOGRAPH_SERVER_HOME=/studio \
    LITHOGRAPH_SERVER_STOP_JOBS=true
EXPOSE 8001
HEALTHCHECK --interval=10s --timeout=5s --start-period=1m --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['LITHOGRAPH_SERVER_PORT'] + '/healthz', timeout=4)"]
CMD ["server"]

FROM runtime AS service
ENV LITHOGRAPH_SERVE_HOST=0.0.0.0 \
    LITHOGRAPH_SERVE_PORT=8000 \
    LITHOGRAPH_SERVE_ADAPTERS=file:///adapters
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['LITHOGRAPH_SERVE_PORT'] + '/healthz', timeout=4)"]
CMD ["serve"]
