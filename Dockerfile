# An image with quantascope for a head or worker of a Ray cluster; `make wheel` comes first. See docs/deploy.md.
#
#   docker build --tag quantascope:cpu .
#   docker build --tag quantascope:gpu --build-arg VARIANT=gpu --build-arg TORCH_INDEX=https://pypi.org/simple .
#
# VARIANT is both the tag of Ray's own image (which brings Python, Ray and, for gpu, CUDA's libraries) and the extra that
# chooses FAISS. PyPI's torch for Linux is the CUDA build; the CPU build is ten times smaller and has an index of its own.
ARG RAY_VERSION=2.60.0
ARG PYTHON=py312
ARG VARIANT=cpu
FROM rayproject/ray:${RAY_VERSION}-${PYTHON}-${VARIANT}

ARG VARIANT
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

COPY dist/quantascope-0.1.0-py3-none-any.whl constraints.txt /tmp/quantascope/

# faiss-gpu is in no constraints file, since one environment cannot hold it beside faiss-cpu.
RUN pip install --no-cache-dir --extra-index-url "${TORCH_INDEX}" --constraint /tmp/quantascope/constraints.txt \
        "/tmp/quantascope/quantascope-0.1.0-py3-none-any.whl[${VARIANT}]" \
    && quantascope --version

# Ray's image leaves the user at `ray`, uid 1000: the run's file system must let it write.
WORKDIR /home/ray
CMD ["quantascope", "--help"]
