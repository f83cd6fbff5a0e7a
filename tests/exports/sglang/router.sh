#!/bin/sh
# SGLang 0.5.23, by headway: a 70B model, prompts prefilled apart
# the router
exec python3 -m sglang_router.launch_router \
  --pd-disaggregation \
  --prefill http://127.0.0.1:8000 8998 \
  --decode http://127.0.0.1:8001 \
  --host 0.0.0.0 \
  --port 7000
