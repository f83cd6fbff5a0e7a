#!/bin/sh
# SGLang 0.5.23, by headway: a 70B model, prompts prefilled apart
# prefill-0 on 127.0.0.1
# engine.memory_utilization=0.9: SGLang is told the share of weights and KV, as the memory model has them; lower --mem-fraction-static where it runs out of memory at the start
# model: meta-llama/Llama-3.1-70B is where the architecture was read; --model-path names others, as one for chat
set -e
export CUDA_VISIBLE_DEVICES=0,1,2,3
exec python3 -m sglang.launch_server \
  --model-path meta-llama/Llama-3.1-70B \
  --served-model-name llama-3.1-70b \
  --host 0.0.0.0 \
  --port 8000 \
  --enable-metrics \
  --tp-size 4 \
  --pp-size 1 \
  --quantization fp8 \
  --kv-cache-dtype bf16 \
  --page-size 16 \
  --mem-fraction-static 0.860 \
  --chunked-prefill-size 8192 \
  --max-prefill-tokens 8192 \
  --max-running-requests 256 \
  --schedule-policy fcfs \
  --disaggregation-mode prefill \
  --disaggregation-transfer-backend nixl \
  --disaggregation-bootstrap-port 8998
