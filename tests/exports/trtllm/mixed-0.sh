#!/bin/sh
# TensorRT-LLM 1.2, by headway: a 671B model, attention by data-parallel ranks, one layer drafting
# mixed-0 on 127.0.0.1
# engine.memory_utilization=0.9: TensorRT-LLM is told the share of the memory left beside weights and activations, as the memory model has them
# served name deepseek-v3: trtllm-serve calls the model by the last part of its path
# engine.block_tokens=16: 64 here, as the kernels for this model and these GPUs have them
# model: deepseek-ai/DeepSeek-V3 is where the architecture was read; --model-path names others, as one for chat
# dp=8: the engine chooses the rank of a request; policies.route chooses a replica
set -e
export CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7
exec trtllm-serve deepseek-ai/DeepSeek-V3 \
  --host 0.0.0.0 \
  --port 8000 \
  --config ./mixed-0.yaml
