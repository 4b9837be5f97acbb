# Image of the stages with a network: train, finetune, evaluate, export-attention, report; also of TrainJobs' nodes.
# The base is pinned by digest; any image with Python 3.11 and its venv module will do in its place.
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS dependencies
# cpu or cuda; the CPU build of PyTorch comes from its own index.
ARG TORCH=cuda
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
# Another package index or proxy: build arguments of pip's own names; nothing of them stays in the image.
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS PIP_CERT
WORKDIR /build
COPY pyproject.toml constraints.txt images/requirements.py ./
RUN python3.11 -m venv /opt/stabn
RUN version=$(sed -n 's/^torch==//p' constraints.txt) \
 && if [ "$TORCH" = cpu ]; \
    then /opt/stabn/bin/pip install --no-cache-dir --extra-index-url "$TORCH_INDEX_URL" -c constraints.txt "torch==$version+cpu"; \
    else /opt/stabn/bin/pip install --no-cache-dir -c constraints.txt "torch===$version"; fi
RUN python3.11 requirements.py pyproject.toml base train pipelines > requirements.txt \
 && /opt/stabn/bin/pip install --no-cache-dir -c constraints.txt -r requirements.txt \
 && /opt/stabn/bin/pip check \
 && /opt/stabn/bin/pip uninstall --yes pip

# The package apart from what it needs: a change of code is a layer of a megabyte.
# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS package
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS PIP_CERT
WORKDIR /build
COPY . ./
# The venv has the path of the final one, so that the commands begin with the right interpreter.
RUN python3.11 -m venv /opt/stabn \
 && /opt/stabn/bin/pip install --no-cache-dir --no-deps . \
 && mkdir -p /package/bin /package/site \
 && cp /opt/stabn/bin/stabn /package/bin/ \
 && cp -r /opt/stabn/lib/python3.11/site-packages/stabn* /opt/stabn/lib/python3.11/site-packages/components \
    /opt/stabn/lib/python3.11/site-packages/pipelines /package/site/

# hadolint ignore=DL3006
FROM ${BASE_IMAGE}
ARG BASE_IMAGE
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG TORCH=cuda
LABEL org.opencontainers.image.title="stabn-trainer" \
      org.opencontainers.image.description="ST-ABN: training and evaluation" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}"
COPY --from=dependencies /opt/stabn /opt/stabn
COPY --from=package /package/bin /opt/stabn/bin
COPY --from=package /package/site /opt/stabn/lib/python3.11/site-packages
# Any user id works: nothing but HOME is written, and that is /tmp, where a read-only root has a volume.
ENV PATH=/opt/stabn/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    USER=stabn \
    LOGNAME=stabn \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    STABN_GIT_COMMIT=${REVISION}
WORKDIR /tmp
USER 10001:0
RUN --mount=type=bind,source=images/smoke.py,target=/mnt/smoke.py python3 /mnt/smoke.py "trainer-$TORCH"
CMD ["stabn", "--help"]
