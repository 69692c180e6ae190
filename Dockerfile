# One file for every service: docker build --build-arg SERVICE=api .
FROM python:3.12-slim AS build
ARG SERVICE
RUN python -m venv /opt/cortex
WORKDIR /src
COPY services/${SERVICE}/requirements.txt requirements.txt
RUN /opt/cortex/bin/pip install --no-cache-dir --require-hashes -r requirements.txt
COPY shared shared
COPY services/${SERVICE} service
RUN /opt/cortex/bin/pip install --no-cache-dir --no-deps ./shared ./service
# The gateway's hot modules are compiled; the compiler stays here.
RUN if [ -f service/compile.py ]; then \
        apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && \
        python -m pip install --no-cache-dir --require-hashes --target /opt/mypyc -r service/requirements-native.txt && \
        PYTHONPATH=/opt/mypyc /opt/cortex/bin/python service/compile.py; \
    fi

FROM python:3.12-slim
ARG SERVICE
RUN useradd --system --uid 10001 --home-dir /var/lib/cortex --create-home cortex
COPY --from=build /opt/cortex /opt/cortex
ENV PATH=/opt/cortex/bin:$PATH CORTEX_SERVICE=${SERVICE} PYTHONUNBUFFERED=1
USER cortex
WORKDIR /var/lib/cortex
# The module is cortex_<service>; node-agent's is cortex_node_agent.
CMD ["sh", "-c", "exec python -m cortex_$(echo \"$CORTEX_SERVICE\" | tr - _)"]
