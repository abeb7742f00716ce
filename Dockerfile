# One image for every process. The CSI stubs (csi/pb) are generated before the build: `make setup`.
# Dependencies and program are layers of their own: a change of the program rebuilds and ships little.
FROM debian:trixie-slim AS dependencies
RUN apt-get update && apt-get install -y --no-install-recommends python3-minimal python3-venv
COPY requirements/ /src/requirements/
# Compiled here, since the file system is read-only at run time; a sample file that does not compile is no fault.
RUN python3 -m venv /opt/cinderblock \
 && /opt/cinderblock/bin/pip install --no-cache-dir --no-compile --require-hashes -r /src/requirements/runtime.lock \
 && /opt/cinderblock/bin/pip uninstall -y -q pip \
 && { /opt/cinderblock/bin/python -m compileall -q /opt/cinderblock/lib || true; }

FROM dependencies AS program
RUN python3 -m venv /opt/hatch && /opt/hatch/bin/pip install --no-cache-dir --require-hashes -r /src/requirements/build.lock
WORKDIR /src
COPY pyproject.toml README.md ./
COPY core/ core/
COPY drivers/ drivers/
COPY operator/ operator/
COPY csi/ csi/
COPY cli/ cli/
# Without stubs the image would fail at start; fail here instead, with a reason.
RUN test -s csi/pb/csi_pb2.py || { echo "csi/pb is missing: run 'make setup' first" >&2; exit 1; }
RUN /opt/hatch/bin/hatchling build -t wheel -d /wheel \
 && /opt/hatch/bin/pip --python /opt/cinderblock/bin/python install --no-cache-dir --no-deps --root /out /wheel/*.whl

FROM debian:trixie-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-minimal libpython3-stdlib ca-certificates util-linux mount e2fsprogs xfsprogs \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives
COPY --from=dependencies /opt/cinderblock /opt/cinderblock
COPY --from=program /out/opt/cinderblock /opt/cinderblock
ENV PATH=/opt/cinderblock/bin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# The pods that mount and make loop devices ask for root themselves.
USER 65532:65532
ENTRYPOINT ["cinderblock"]
