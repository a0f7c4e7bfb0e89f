#include "server/llama-self-extend-args.h"

#include "server/llama-self-extend-cli.h"

#include <cstdlib>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

// handlers have no state of their own
static struct {
    bool     is_auto = true;
    uint32_t ga_n    = 1;
    uint32_t ga_w    = LLAMA_SELF_EXTEND_GA_W_DEFAULT;

    llama_self_extend_map_type map = LLAMA_SELF_EXTEND_MAP_SELF_EXTEND;

    std::vector<llama_self_extend_step> steps;

    bool keep_slots = false;

    std::vector<std::string> files;
} given;

static const std::pair<const char *, llama_self_extend_map_type> maps[] = {
    { "self-extend", LLAMA_SELF_EXTEND_MAP_SELF_EXTEND },
    { "jet-long",    LLAMA_SELF_EXTEND_MAP_JET_LONG    },
    { "rerope",      LLAMA_SELF_EXTEND_MAP_REROPE      },
    { "leaky",       LLAMA_SELF_EXTEND_MAP_LEAKY       },
    { "lampe",       LLAMA_SELF_EXTEND_MAP_LAMPE       },
    { "mrrope",      LLAMA_SELF_EXTEND_MAP_MRROPE      },
};

const char * llama_self_extend_map_name(llama_self_extend_map_type map) {
    for (const auto & [name, type] : maps) {
        if (type == map) {
            return name;
        }
    }

    return "";
}

static std::string map_names() {
    std::string res;

    for (const auto & [name, _] : maps) {
        res += (res.empty() ? "" : ", ") + std::string(name);
    }

    return res;
}

// a number in full, from 0 to n_max
static uint64_t parse_number(const std::string & what, const std::string & text, uint64_t n_max) {
    const bool is_number = !text.empty() && text.size() < 19 && text.find_first_not_of("0123456789") == std::string::npos;

    if (!is_number || std::stoull(text) > n_max) {
        throw std::invalid_argument(what + " is '" + text + "', it must be a number from 0 to " + std::to_string(n_max));
    }
    return std::stoull(text);
}

static void parse_ga_n(common_params &, const std::string & value) {
    given.is_auto = value == "auto";
    given.ga_n    = given.is_auto ? 1 : parse_number("--ga-n", value, LLAMA_SELF_EXTEND_GA_N_MAX_AUTO - 1);
}

static void parse_ga_w(common_params &, const std::string & value) {
    given.ga_w = parse_number("--ga-w", value, LLAMA_SELF_EXTEND_GA_W_DEFAULT - 1);
}

static void parse_ga_map(common_params &, const std::string & value) {
    for (const auto & [name, map] : maps) {
        if (value == name) {
            given.map = map;
            return;
        }
    }

    throw std::invalid_argument("--ga-map is '" + value + "', it must be one of " + map_names());
}

static void parse_ga_groups(common_params &, const std::string & value) {
    std::istringstream list(value);
    std::string        item;

    given.steps.clear();

    while (std::getline(list, item, ',')) {
        const auto colon = item.find(':');

        if (colon == std::string::npos) {
            throw std::invalid_argument("--ga-groups is '" + value + "', it must be like 16384:2,32768:4, lengths with their group sizes");
        }
        given.steps.push_back({
            int64_t (parse_number("a length of --ga-groups",     item.substr(0, colon),  INT32_MAX)),
            uint32_t(parse_number("a group size of --ga-groups", item.substr(colon + 1), LLAMA_SELF_EXTEND_GA_N_MAX_AUTO - 1)),
        });
    }
}

static void parse_keep_slots(common_params &) {
    given.keep_slots = true;
}

static void parse_read(common_params &, const std::string & value) {
    given.files.push_back(value);
}

std::vector<common_arg> llama_self_extend_args() {
    std::vector<common_arg> res = {
        common_arg({"--ga-n"}, "N", "group size of SelfExtend (default: auto)\n"
            "auto: contexts longer than the model's trained one are extended, by a group size that follows the length of the text\n"
            "1: the plain model; its slots are no longer than its trained context", parse_ga_n).set_env("LLAMA_ARG_GA_N"),
        common_arg({"--ga-w"}, "N", "neighbour window of SelfExtend: the last N tokens keep their exact relative positions\n"
            "(default: an eighth of the trained context, at most 2048)", parse_ga_w).set_env("LLAMA_ARG_GA_W"),
        common_arg({"--ga-map"}, "NAME", "how far tokens are mapped: " + map_names() + " (default: self-extend)", parse_ga_map).set_env("LLAMA_ARG_GA_MAP"),
        common_arg({"--ga-groups"}, "N:G,...", "group sizes that were measured on the model: texts of up to N tokens are read with G\n"
            "(default: none, the authors' rule is followed)", parse_ga_groups).set_env("LLAMA_ARG_GA_GROUPS"),
    };

    for (auto & arg : res) {
        arg.set_examples({LLAMA_EXAMPLE_SERVER, LLAMA_EXAMPLE_CLI});
    }

    res.push_back(common_arg({"--keep-slots"}, "save what the slots have read in --slot-save-path when the server ends, and go on from there when it\n"
        "starts with the same model (default: off)", parse_keep_slots).set_env("LLAMA_ARG_KEEP_SLOTS").set_examples({LLAMA_EXAMPLE_SERVER}));

    res.push_back(common_arg({"--read"}, "FNAME", "a text that the first message begins with, as with /read; can be given again", parse_read)
        .set_examples({LLAMA_EXAMPLE_CLI}));

    return res;
}

const std::vector<std::string> & llama_self_extend_files() {
    return given.files;
}

bool llama_self_extend_keep_slots() {
    return given.keep_slots;
}

void llama_self_extend_apply_args(const common_params & base) {
    if (given.keep_slots && base.slot_save_path.empty()) {
        throw std::invalid_argument("error: --keep-slots needs --slot-save-path, a folder");
    }

    auto params = llama_self_extend_default_params();

    const uint32_t unit = given.map == LLAMA_SELF_EXTEND_MAP_LAMPE ? LLAMA_SELF_EXTEND_LAMPE_UNIT : 1;

    params.ga_n     = given.is_auto ? unit : given.ga_n;
    params.ga_n_max = given.is_auto ? LLAMA_SELF_EXTEND_GA_N_MAX_AUTO : 0;
    params.ga_w     = given.ga_w;
    params.map      = given.map;

    if (!llama_self_extend_set_default(&params, given.steps.data(), given.steps.size())) {
        throw std::invalid_argument("error: " + std::string(llama_self_extend_last_error()));
    }
}
