# One image for every process. The CSI stubs (csi/pb) are generated before the build: `make setup`.
FROM debian:trixie-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends python3-minimal python3-venv
WORKDIR /src
COPY requirements/ requirements/
RUN python3 -m venv /opt/cinderblock \
 && /opt/cinderblock/bin/pip install --no-cache-dir --require-hashes -r requirements/runtime.lock \
 && python3 -m venv /opt/build && /opt/build/bin/pip install --no-cache-dir --require-hashes -r requirements/build.lock
COPY pyproject.toml README.md ./
COPY core/ core/
COPY drivers/ drivers/
COPY operator/ operator/
COPY csi/ csi/
COPY cli/ cli/
# Without stubs the image would fail at start; fail here instead, with a reason.
RUN test -s csi/pb/csi_pb2.py || { echo "csi/pb is missing: run 'make setup' first" >&2; exit 1; } \
 && cd /src && /opt/build/bin/hatchling build -t wheel -d /wheel \
 && /opt/cinderblock/bin/pip install --no-cache-dir --no-deps /wheel/*.whl \
 && /opt/cinderblock/bin/pip uninstall -y -q pip
# Compiled once here, since the file system is read-only at run time; a package's own broken sample file is no fault.
RUN /opt/cinderblock/bin/python -m compileall -q /opt/cinderblock/lib || true

FROM debian:trixie-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-minimal libpython3-stdlib ca-certificates util-linux mount e2fsprogs xfsprogs \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives
COPY --from=build /opt/cinderblock /opt/cinderblock
ENV PATH=/opt/cinderblock/bin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# The pods that mount and make loop devices ask for root themselves.
USER 65532:65532
ENTRYPOINT ["cinderblock"]
