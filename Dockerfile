# The container image of the server; docs/container.md explains how to build and run it.
#
# The base image provides Python and torch. requirements.txt pins the same torch, so it is not downloaded again.
# CUDA 12.6 needs driver 525 or newer and supports GPUs up to Hopper; for newer GPUs use the cuda13.0 image of this torch.
ARG BASE_IMAGE=pytorch/pytorch:2.13.0-cuda12.6-cudnn9-runtime@sha256:6acf597eeb8e376a96580dde4952f37cc017fef732bb40bfc73f28f25e3f64b4

FROM ${BASE_IMAGE} AS packages
# The base image's pip installs into the environment, which therefore needs no pip of its own.
RUN python3 -m venv --without-pip --system-site-packages /opt/venv
COPY requirements.txt /tmp/
# The secret `pip` can provide the configuration of a private package index. It does not end up in the image.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m pip --python /opt/venv/bin/python install --no-cache-dir -r /tmp/requirements.txt

FROM packages AS model
ARG PRELOAD_MODEL=""
ARG PRELOAD_REVISION=""
ARG HF_ENDPOINT
ENV HF_HOME=/home/user/.cache/huggingface
WORKDIR /app
# Only the modules that download a model, so that other changes of the code don't download it again.
COPY vit_api/__init__.py vit_api/
COPY vit_api/environment/__init__.py vit_api/environment/home.py vit_api/environment/space.py vit_api/environment/
COPY vit_api/checkpoints/__init__.py vit_api/checkpoints/hub.py vit_api/checkpoints/weights.py vit_api/checkpoints/
# A commit is required, because a branch may change.
RUN --mount=type=secret,id=hf_token,target=/run/secrets/hf_token \
    mkdir --parents "$HF_HOME" && \
    if [ -n "$PRELOAD_MODEL" ]; then \
        expr "$PRELOAD_REVISION" : '[0-9a-f]\{40\}$' >/dev/null || \
            { echo "PRELOAD_MODEL needs PRELOAD_REVISION: set it to a commit id (40 hex digits)." >&2; exit 1; }; \
        HF_TOKEN_PATH=/run/secrets/hf_token /opt/venv/bin/python -c \
            'import sys; from vit_api.checkpoints.hub import fetch; print(*fetch(*sys.argv[1:]))' \
            "$PRELOAD_MODEL" "$PRELOAD_REVISION"; \
    fi

FROM packages AS code
WORKDIR /app
COPY server.py deploy/healthcheck.py ./
COPY vit_api vit_api
# The code is read-only at run time. Unchecked hashes don't depend on file dates, which image builders may change.
RUN /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash .

FROM ${BASE_IMAGE} AS server
ARG KEEP_COMPILER=""
# The PyTorch image has gcc, which only the engine `compile` needs. Without a compiler there is less for an attacker.
RUN if [ -z "$KEEP_COMPILER" ] && dpkg --status gcc >/dev/null 2>&1; then \
        apt-get purge --yes --auto-remove gcc binutils && rm -rf /var/lib/apt/lists/*; \
    fi
# Ubuntu's images already have a user with this id.
RUN if name=$(id --name --user 1000 2>/dev/null); then userdel --remove "$name"; fi && \
    groupadd --gid 1000 user && useradd --no-log-init --create-home --uid 1000 --gid 1000 user
COPY --from=packages /opt/venv /opt/venv
COPY --from=model --chown=1000:1000 /home/user/.cache /home/user/.cache
COPY --from=code /app /app

# Models and compiled code are cached below ~/.cache. If that is read-only, torch uses /tmp, which it needs even if it
# compiles nothing. Empty settings are ignored, so the last two have no effect if no model was preloaded.
ARG PRELOAD_MODEL=""
ARG PRELOAD_REVISION=""
# Without the capabilities, NVIDIA's container toolkit may leave out the driver's libraries. PyTorch's images set them.
ENV PATH=/opt/venv/bin:$PATH \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    HOME=/home/user \
    HF_HOME=/home/user/.cache/huggingface \
    PYTHONDONTWRITEBYTECODE=1 \
    VIT_API_MODEL=${PRELOAD_MODEL} \
    VIT_API_REVISION=${PRELOAD_REVISION}
WORKDIR /app
USER 1000:1000
EXPOSE 7860
# The start period allows for the download and warm-up of a model; failures before its end don't count.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 CMD ["python", "/app/healthcheck.py"]
ENTRYPOINT ["python", "/app/server.py"]
