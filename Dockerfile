# The image: one static program and nothing else, not even a shell. `make image` builds it
# without a container engine.
#
# Nothing here runs in a shell or looks for a program, so that a Go toolchain is all that
# GO_IMAGE has to have.
ARG GO_IMAGE=docker.io/library/golang:1.26.8

FROM --platform=$BUILDPLATFORM $GO_IMAGE AS build
ARG TARGETOS
ARG TARGETARCH
ARG VERSION
WORKDIR /src
COPY go.mod go.sum ./
RUN ["/usr/local/go/bin/go", "mod", "download"]
COPY . .
ENV CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH GOFLAGS="-trimpath -tags=grpcnotrace -buildvcs=false '-ldflags=-s -w -X main.version=$VERSION'"
RUN ["/usr/local/go/bin/go", "build", "-o", "/out/capdrift", "./cmd/capdrift"]

FROM scratch
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="capdrift" \
      org.opencontainers.image.description="What the kernel granted to each container of a node, beside what was declared for it" \
      org.opencontainers.image.url="https://github.com/capdrift/capdrift" \
      org.opencontainers.image.source="https://github.com/capdrift/capdrift" \
      org.opencontainers.image.documentation="https://github.com/capdrift/capdrift/blob/main/docs/kubernetes.md" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build /out/capdrift /bin/capdrift
# A runtime's socket belongs to root. It needs no capability.
USER 0:0
ENTRYPOINT ["/bin/capdrift"]
CMD ["help"]
