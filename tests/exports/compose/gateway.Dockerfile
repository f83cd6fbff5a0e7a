FROM python:3.11-slim
COPY gateway.Dockerfile headway-*.whl /tmp/
RUN pip install --no-cache-dir "$(ls /tmp/headway-*.whl 2>/dev/null || echo headway)[serve]"
