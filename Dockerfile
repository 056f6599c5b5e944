# CPU:  docker build -t sam-runner .
# CUDA: docker build -t sam-runner:cuda --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 .
# Any base with apt works. PyTorch's wheels bring the CUDA libraries, the host brings the driver.
ARG BASE=python:3.11-slim
FROM ${BASE}
ARG BASE

RUN python3 -c "import ensurepip, venv" 2>/dev/null \
    || (apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*)
RUN python3 -m venv /opt/sam-runner
ENV PATH=/opt/sam-runner/bin:$PATH PIP_NO_CACHE_DIR=1

# In a layer of its own, before the sources: it is large and seldom changes.
RUN case "$BASE" in \
        *cuda*) pip install "torch>=2.10" "torchvision>=0.25" ;; \
        *) pip install "torch>=2.10" "torchvision>=0.25" --index-url https://download.pytorch.org/whl/cpu ;; \
    esac

COPY pyproject.toml README.md LICENSE /src/
COPY sam_runner /src/sam_runner
COPY conf /src/conf
RUN pip install /src

RUN useradd --create-home runner && mkdir /runs && chown runner /runs
USER runner
WORKDIR /runs
CMD ["sam-train", "--help"]
