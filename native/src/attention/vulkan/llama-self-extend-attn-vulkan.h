#pragma once

#include "ggml.h"
#include "ggml-backend.h"

#include <cstdint>
#include <memory>

//
// the fused attention on Vulkan: what the patched ggml-vulkan.cpp calls
//

struct ggml_backend_vk_context;
struct vk_context_struct;

// whether the device can compute a GGML_OP_CUSTOM: one of ours, with shapes, types and strides that the shaders read
bool llama_self_extend_attn_vulkan_supports(ggml_backend_dev_t dev, const ggml_tensor * node);

// records the commands that compute a node which is supported
void llama_self_extend_attn_vulkan(ggml_backend_vk_context * ctx, std::shared_ptr<vk_context_struct> & subctx, ggml_tensor * node);

// by which ggml decides how much it submits at a time
uint64_t llama_self_extend_attn_vulkan_n_flops(const ggml_tensor * node);

// ggml_backend_reg_get_proc_address()
void * llama_self_extend_attn_vulkan_proc(ggml_backend_reg_t reg, const char * name);
