#include "server/llama-self-extend-slots.h"

#include "server/llama-self-extend-args.h"

#include "server-task.h"

#include <filesystem>
#include <string>
#include <system_error>

static std::vector<server_task> tasks_of(const common_params & params, server_task_type type) {
    std::vector<server_task> res;

    if (!llama_self_extend_keep_slots()) {
        return res;
    }

    const auto model = std::filesystem::u8path(params.model.path).stem().u8string();

    for (int id = 0; id < params.n_parallel; ++id) {
        auto & task = res.emplace_back(type);

        task.slot_action.id_slot  = id;
        task.slot_action.filename = std::string(model.begin(), model.end()) + ".slot-" + std::to_string(id);
        task.slot_action.filepath = params.slot_save_path + task.slot_action.filename;
    }

    return res;
}

std::vector<server_task> llama_self_extend_tasks_at_end(const common_params & params) {
    return tasks_of(params, SERVER_TASK_TYPE_SLOT_SAVE);
}

std::vector<server_task> llama_self_extend_tasks_at_start(const common_params & params) {
    std::vector<server_task> res;

    for (auto & task : tasks_of(params, SERVER_TASK_TYPE_SLOT_RESTORE)) {
        std::error_code error;

        if (std::filesystem::exists(std::filesystem::u8path(task.slot_action.filepath), error)) {
            res.push_back(std::move(task));
        }
    }

    return res;
}
