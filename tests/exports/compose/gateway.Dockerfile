FROM python:3.11-slim
# From a checkout in its place: pip wheel --no-deps -w . PATH, beside this file, and COPY and install that wheel.
RUN pip install --no-cache-dir 'headway[serve]==0.1.0'
