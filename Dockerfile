# syntax=docker/dockerfile:1
# routed-rl, on a CPU or on NVIDIA GPUs:
#
#   docker build --target cpu -t routed-rl . && docker run --rm -v "$PWD/runs:/home/routed/runs" routed-rl train
#   docker build --target gpu -t routed-rl:gpu . && docker run --rm --gpus all --shm-size 8g -v "$PWD/runs:/home/routed/runs" routed-rl:gpu train
#
# The user in it has uid 1000: the mounted folder must be writable for it. Environments that run untrusted code need the sandbox, which
# Docker's defaults block; without it they are refused, not run. Add to `docker run`:
#   --security-opt seccomp=unconfined --security-opt apparmor=unconfined

FROM python:3.11-slim-bookworm AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1

FROM base AS build
# A dependency of the environments, and DeepSpeed, are built from source.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ git && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /source

# Layers from what changes least to what changes most: torch, the other packages, this one.
FROM build AS build-cpu
# Empty: pip's default index, whose torch comes with CUDA and works without a GPU too. The index of PyTorch's CPU builds saves gigabytes.
ARG TORCH_INDEX_URL=
COPY constraints.txt ./
RUN if [ -n "$TORCH_INDEX_URL" ]; then pip install -c constraints.txt --index-url "$TORCH_INDEX_URL" torch; \
    else pip install -c constraints.txt torch; fi
COPY pyproject.toml README.md LICENSE THIRD_PARTY_NOTICES.md ./
COPY routed_rl/__init__.py routed_rl/__init__.py
COPY configs/config.yaml configs/config.yaml
COPY environments/values_probe.py environments/values_probe.py
RUN pip install -c constraints.txt '.[envs]'
COPY . .
RUN pip install --no-deps --force-reinstall .

FROM build AS build-gpu
COPY constraints.txt ./
RUN pip install -c constraints.txt torch
COPY pyproject.toml README.md LICENSE THIRD_PARTY_NOTICES.md ./
COPY routed_rl/__init__.py routed_rl/__init__.py
COPY configs/config.yaml configs/config.yaml
COPY environments/values_probe.py environments/values_probe.py
RUN pip install -c constraints.txt '.[envs,vllm,wandb]'
COPY . .
RUN pip install --no-deps --force-reinstall .

FROM base AS run
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends bubblewrap && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 routed
ENV PATH=/opt/venv/bin:$PATH HF_HUB_DISABLE_TELEMETRY=1
USER 1000
WORKDIR /home/routed
RUN mkdir runs
ENTRYPOINT ["routed-rl"]
CMD ["--help"]

FROM run AS gpu
COPY --from=build-gpu /opt/venv /opt/venv

# The last stage is what `docker build .` makes.
FROM run AS cpu
ENV OMP_NUM_THREADS=1
COPY --from=build-cpu /opt/venv /opt/venv
