# routed-rl on a CPU. docker build -t routed-rl . && docker run --rm -v "$PWD/runs:/home/routed/runs" routed-rl train
# Environments that run untrusted code need the sandbox, which Docker's defaults block; add to `docker run`:
# --security-opt seccomp=unconfined --security-opt apparmor=unconfined
FROM python:3.11-slim AS build
# Empty: pip's default index, whose torch comes with CUDA.
ARG TORCH_INDEX_URL=
WORKDIR /source
RUN python -m venv /opt/venv
COPY constraints.txt .
RUN /opt/venv/bin/pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch
COPY . .
RUN /opt/venv/bin/pip install --no-cache-dir -c constraints.txt .

FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends bubblewrap && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home routed
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH OMP_NUM_THREADS=1
USER routed
WORKDIR /home/routed
ENTRYPOINT ["routed-rl"]
CMD ["--help"]
