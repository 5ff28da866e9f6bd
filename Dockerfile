# syntax=docker/dockerfile:1

# Build: both programs, static, so that they need nothing from the image they run in.
FROM --platform=$BUILDPLATFORM golang:1.26-alpine AS build
WORKDIR /src
# The toolchain of this image or a clear error; never a download in the middle of a build.
ENV CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-buildvcs=false
ARG TARGETOS
ARG TARGETARCH
# No `go mod download` first: go.mod also names what the Task tool needs, and the build fetches only what it compiles.
COPY go.mod go.sum ./
COPY cmd ./cmd
COPY internal ./internal
RUN --mount=type=cache,target=/go/pkg/mod \
    --mount=type=cache,target=/root/.cache/go-build \
    GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -ldflags="-s -w" -o /out/ ./cmd/app ./cmd/consumer

# Run: Alpine rather than an empty image for its CA certificates (SMTP over TLS) and its wget (the health check).
FROM alpine:3.22
RUN adduser -D -H -u 10001 -s /sbin/nologin postbus
COPY --from=build /out/app /out/consumer /usr/local/bin/
# By number, so that Kubernetes' runAsNonRoot can tell that it isn't root.
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080
CMD ["app"]
