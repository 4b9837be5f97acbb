# Image of the services around: the MLflow server, and SeaweedFS where a cluster has no object storage.
# The base is pinned by digest; any image with Python 3.11 and its venv module will do in its place.
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS dependencies
# Another package index or proxy: build arguments of pip's own names; nothing of them stays in the image.
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS PIP_CERT
WORKDIR /build
COPY pyproject.toml constraints.txt images/requirements.py ./
RUN python3.11 -m venv /opt/stabn
RUN python3.11 requirements.py pyproject.toml services > requirements.txt \
 && /opt/stabn/bin/pip install --no-cache-dir -c constraints.txt -r requirements.txt \
 && /opt/stabn/bin/pip check \
 && /opt/stabn/bin/pip uninstall --yes pip

# hadolint ignore=DL3006
FROM ${BASE_IMAGE}
ARG BASE_IMAGE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="stabn-services" \
      org.opencontainers.image.description="MLflow and SeaweedFS as ST-ABN uses them" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}"
COPY --from=dependencies /opt/stabn /opt/stabn
# Any user id works: nothing but HOME is written, and that is /tmp, where a read-only root has a volume.
ENV PATH=/opt/stabn/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    USER=stabn \
    LOGNAME=stabn \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /tmp
USER 10001:0
RUN --mount=type=bind,source=images/smoke.py,target=/mnt/smoke.py python3 /mnt/smoke.py services
CMD ["mlflow", "--version"]
