# The same on NVIDIA GPUs: torch from the package index carries its CUDA libraries, the host needs only a driver and
# the NVIDIA container toolkit. Build from the repository's root:
#   docker build -f deploy/gpu.Dockerfile -t paire:gpu .
#   docker run --rm --gpus all -v /data:/data paire:gpu clean /data/archive --out /data/runs/tonight \
#     --set features.device=cuda
FROM python:3.11-slim

# What the NVIDIA container toolkit hands to the container.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

RUN useradd --create-home --uid 1000 paire
WORKDIR /app

RUN pip install --no-cache-dir torch torchvision

COPY pyproject.toml README.md LICENSE ./
COPY paire paire
COPY schemas schemas
COPY workers workers
COPY pipeline pipeline
RUN pip install --no-cache-dir .

USER paire
WORKDIR /home/paire
ENTRYPOINT ["paire"]
CMD ["--help"]
