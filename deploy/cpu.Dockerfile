# The command, Dask scheduler and workers on CPUs. Build from the repository's root:
#   docker build -f deploy/cpu.Dockerfile -t paire:cpu .
#   docker run --rm -v /data:/data paire:cpu clean /data/archive --out /data/runs/tonight
FROM python:3.11-slim

RUN useradd --create-home --uid 1000 paire
WORKDIR /app

# Torch alone is most of the image: in a layer of its own it is downloaded once, not at every change of the code.
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
