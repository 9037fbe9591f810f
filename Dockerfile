# The image as `make image` builds it, for those with a container engine: the same files, by the same deploy/image/build.py.
# Its digest is another one, since an engine dates what it copies. docs/verifying.md has the build that can be reproduced.
#
#   docker build --build-arg PORTCULLIS_COMMIT="$(git rev-parse HEAD)" \
#     --build-arg SOURCE_DATE_EPOCH="$(git log -1 --format=%ct)" --tag portcullis .
FROM docker.io/library/rust:1.95.0-slim-bookworm@sha256:d7482085ff5b415f84dba5647ae71606650bdef00db7aeb69f4b3d170c3e4082 AS build
RUN apt-get update && apt-get install --yes --no-install-recommends python3 python3-pip && rm -rf /var/lib/apt/lists/*
WORKDIR /portcullis
ENV PORTCULLIS_CACHE=/cache
# Apart from the sources, so that it is built once.
COPY deploy/image/tools.py deploy/image/
RUN python3 -c 'import sys; sys.path.insert(0, "deploy/image"); import tools; tools.cargo_tool("cargo-auditable")'
COPY . .
ARG PORTCULLIS_COMMIT
ARG SOURCE_DATE_EPOCH
RUN : "${PORTCULLIS_COMMIT:?is to be given by --build-arg}" "${SOURCE_DATE_EPOCH:?is to be given by --build-arg}" \
    && CARGO_TARGET_DIR=/target python3 deploy/image/build.py --root . /image

FROM scratch
ARG PORTCULLIS_COMMIT
LABEL org.opencontainers.image.title="portcullis" \
      org.opencontainers.image.description="Just-in-time network access to virtual machines, as a Kubernetes controller" \
      org.opencontainers.image.revision="${PORTCULLIS_COMMIT}" \
      org.opencontainers.image.source="https://github.com/portcullis-io/portcullis" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /image/ /
ENV PATH=/usr/local/bin
USER 65532:65532
WORKDIR /
ENTRYPOINT ["/usr/local/bin/portcullis"]
