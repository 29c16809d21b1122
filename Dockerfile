# fastwm for the command line and notebooks.
#
#     docker build -t fastwm .                                                                  # CPU
#     docker build -t fastwm --build-arg BASE=nvidia/cuda:12.8.1-devel-ubuntu24.04 .            # CUDA kernels too
#     docker run --rm -v "$PWD/runs:/runs" fastwm train dreamer_v3 --env cartpole --preset cartpole --logdir /runs/cartpole
#
# The CUDA version of BASE must be the one that PyTorch is built for; TORCH chooses the version of PyTorch.
ARG BASE=ubuntu:24.04
FROM ${BASE}
ARG TORCH="torch>=2.11"
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv python3-dev g++ libgomp1 libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/fastwm
ENV PATH=/opt/fastwm/bin:$PATH
RUN pip install --no-cache-dir "${TORCH}" "setuptools>=77"
COPY . /src
RUN pip install --no-cache-dir --no-build-isolation "/src[agents,log,video,view]" && rm -rf /src && fastwm doctor
WORKDIR /runs
ENTRYPOINT ["fastwm"]
