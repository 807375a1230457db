// A complete runtime for class-conditional bundles over ONNX Runtime's C API. docs/format.md explains every step; it
// makes the same tokens as bitdance-edge.
//
//     c++ -std=c++17 -O2 minimal_runtime.cpp -o minimal_runtime -lonnxruntime
//     ./minimal_runtime bundles/digits-4x 3 1        # bundle, class, seed: writes tokens.bin (int8) and image.ppm
//
// Needs nlohmann/json (Debian: nlohmann-json3-dev) and a bundle in fp32.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>
#if __has_include(<onnxruntime_c_api.h>)
#include <onnxruntime_c_api.h>
#else
#include "ort_table.h"
#endif

using nlohmann::json;
using Shape = std::vector<std::int64_t>;

const OrtApi* ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);

void check(OrtStatus* status) {
    if (status) throw std::runtime_error(ort->GetErrorMessage(status));
}

struct Tensor {
    Shape shape;
    std::string dtype;
    std::vector<char> bytes;
    template <typename T> T* as() { return reinterpret_cast<T*>(bytes.data()); }
};

// Types of tensors in a manifest: their number in ONNX, and their size.
const std::map<std::string, std::pair<int, int>> TYPES = {
    {"float32", {1, 4}}, {"uint8", {2, 1}}, {"int64", {7, 8}}, {"bool", {9, 1}}};

std::int64_t count(const Shape& shape) {
    std::int64_t product = 1;
    for (auto size : shape) product *= size;
    return product;
}

Tensor zeros(const Shape& shape, const std::string& dtype) {
    return {shape, dtype, std::vector<char>(count(shape) * TYPES.at(dtype).second)};
}

template <typename T> Tensor tensor(const Shape& shape, const std::string& dtype, const std::vector<T>& values) {
    Tensor made = zeros(shape, dtype);
    std::memcpy(made.bytes.data(), values.data(), made.bytes.size());
    return made;
}

class Bundle {
  public:
    json manifest;

    explicit Bundle(const std::string& folder) {
        std::ifstream(folder + "/bundle.json") >> manifest;
        OrtSessionOptions* options;
        OrtEnv* env;
        check(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "bundle", &env));
        check(ort->CreateSessionOptions(&options));
        check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &cpu));
        for (auto& [name, stage] : manifest["stages"].items()) {
            std::string path = folder + "/" + stage["graph"]["path"].get<std::string>();
            check(ort->CreateSession(env, path.c_str(), options, &sessions[name]));
        }
    }

    // Run a stage with those of the inputs that it has; dims are the named dimensions of its outputs.
    std::map<std::string, Tensor> run(const std::string& stage, std::map<std::string, Tensor*> given,
                                      const std::map<std::string, std::int64_t>& dims) {
        std::map<std::string, Tensor> made;
        std::vector<std::string> names[2];
        std::vector<OrtValue*> values[2];
        for (const json& input : manifest["stages"][stage]["inputs"]) {
            names[0].push_back(input["name"]);
            values[0].push_back(value(*given.at(input["name"])));
        }
        for (const json& output : manifest["stages"][stage]["outputs"]) {
            Shape shape;
            for (const json& dim : output["shape"]) shape.push_back(size(dim, dims));
            names[1].push_back(output["name"]);
            values[1].push_back(value(made[output["name"]] = zeros(shape, output["dtype"])));
        }
        std::vector<const char*> text[2];
        for (int side : {0, 1})
            for (const std::string& name : names[side]) text[side].push_back(name.c_str());
        check(ort->Run(sessions.at(stage), nullptr, text[0].data(), values[0].data(), values[0].size(), text[1].data(),
                       values[1].size(), values[1].data()));
        for (int side : {0, 1})
            for (OrtValue* item : values[side]) ort->ReleaseValue(item);
        return made;
    }

  private:
    std::map<std::string, OrtSession*> sessions;
    OrtMemoryInfo* cpu;

    OrtValue* value(Tensor& tensor) {
        OrtValue* made;
        auto type = static_cast<ONNXTensorElementDataType>(TYPES.at(tensor.dtype).first);
        check(ort->CreateTensorWithDataAsOrtValue(cpu, tensor.bytes.data(), tensor.bytes.size(), tensor.shape.data(),
                                                  tensor.shape.size(), type, &made));
        return made;
    }

    // A dimension is a number, a name, or a multiple of a name such as "16*PH".
    static std::int64_t size(const json& dim, const std::map<std::string, std::int64_t>& dims) {
        if (dim.is_number()) return dim;
        std::string text = dim;
        auto star = text.find('*');
        return star == std::string::npos ? dims.at(text) : std::stoll(text) * dims.at(text.substr(star + 1));
    }
};

// Philox 4x64 with ten rounds, as numpy has it: four 64-bit integers for a key and a counter.
void philox(std::uint64_t key0, std::uint64_t key1, const std::uint64_t counter[4], std::uint64_t out[4]) {
    std::uint64_t c[4] = {counter[0], counter[1], counter[2], counter[3]};
    for (int round = 0; round < 10; ++round) {
        unsigned __int128 a = static_cast<unsigned __int128>(0xD2E7470EE14C6C93u) * c[0];
        unsigned __int128 b = static_cast<unsigned __int128>(0xCA5A826395121157u) * c[2];
        std::uint64_t next[4] = {static_cast<std::uint64_t>(b >> 64) ^ c[1] ^ key0, static_cast<std::uint64_t>(b),
                                 static_cast<std::uint64_t>(a >> 64) ^ c[3] ^ key1, static_cast<std::uint64_t>(a)};
        std::memcpy(c, next, sizeof c);
        key0 += 0x9E3779B97F4A7C15u;
        key1 += 0xBB67AE8584CAA73Bu;
    }
    std::memcpy(out, c, sizeof c);
}

// Draws of one patch, [steps, values] one after the other. A block makes eight; each step starts with a new block.
std::vector<float> normals(std::uint64_t seed, std::uint64_t stream, std::uint64_t patch, int steps, int values) {
    const double pi = 3.14159265358979323846;
    std::vector<float> drawn;
    std::uint64_t counter[4] = {0, patch, 0, 0}, block[4];
    for (int step = 0; step < steps; ++step)
        for (int i = 0; i < values;) {
            ++counter[0];  // before its first block too
            philox(seed, stream, counter, block);
            for (int k = 0; k < 8 && i < values; ++k, ++i) {
                double radius = std::sqrt(-2 * std::log(((block[k / 2] >> 32) + 1.0) / 4294967296.0));
                double angle = static_cast<double>(block[k / 2] & 0xFFFFFFFFu) * (2 * pi / 4294967296.0);
                drawn.push_back(static_cast<float>(k % 2 ? radius * std::sin(angle) : radius * std::cos(angle)));
            }
        }
    return drawn;
}

// Times [steps + 1], and coefficients A, B, C of each.
void schedule(const json& sampling, std::vector<float>& times, std::vector<float>& coefficients) {
    int steps = sampling["steps"];
    double shift = sampling["time_shift"];
    bool sde = sampling["sampler"] == "sde";
    auto at = [&](int i) {
        double t = 0.95 * i / steps;
        return i ? (1 / shift) / (1 / shift + (1 / t - 1)) : 0;
    };
    for (int i = 0; i < steps; ++i) {
        double t = at(i), dt = at(i + 1) - t, b = (sde ? 1 + t : 1) * dt / std::fmax(1 - t, 0.05);
        times.push_back(static_cast<float>(t));
        for (double c : {(sde ? 1 - dt : 1) - b, b, sde ? std::sqrt(2 * (1 - t) * dt) : 0})
            coefficients.push_back(static_cast<float>(c));
    }
    times.push_back(0.95f);
    coefficients.insert(coefficients.end(), {0, 1, 0});
}

int main(int argc, char** argv) {
    if (argc != 4) return std::fprintf(stderr, "usage: minimal_runtime BUNDLE CLASS SEED\n"), 2;
    Bundle bundle(argv[1]);
    const std::int64_t class_id = std::stoll(argv[2]), rows = 2;  // one image: with its class, and without
    const std::uint64_t seed = std::stoull(argv[3]);
    const json &model = bundle.manifest["model"], &cache = bundle.manifest["cache"];
    const json& sampling = bundle.manifest["sampling"];
    const std::int64_t block = model["tokens_per_step"], bits = model["bits"], length = cache["length"];
    const std::int64_t side = model["pixels_per_token"].get<int>() * model["patch_side"].get<int>();
    const std::int64_t across = model["sizes"][0]["width"].get<int>() / side;
    const std::int64_t down = model["sizes"][0]["height"].get<int>() / side;
    const std::int64_t patches = across * down * model["patch_side"].get<int>() * model["patch_side"].get<int>() / block;
    std::vector<float> times, coefficients;
    schedule(sampling, times, coefficients);
    const int evaluations = static_cast<int>(times.size());

    std::map<std::string, Tensor> past;
    for (int layer = 0; layer < cache["layers"]; ++layer)
        for (std::string part : {".key", ".value"})
            past["past_key_values." + std::to_string(layer) + part] =
                zeros({rows, cache["heads"], length, cache["head_dim"]}, cache["dtype"]);
    Tensor ids = tensor<std::int64_t>({rows}, "int64", {class_id, model["num_classes"]});
    Tensor embeddings = bundle.run("prompt", {{"class_ids", &ids}}, {{"R", rows}})["embeddings"];
    Tensor all_times = tensor<float>({evaluations}, "float32", times);
    Tensor time_embeddings = bundle.run("time", {{"times", &all_times}}, {{"N", evaluations}})["time_embeddings"];

    std::vector<float> tokens;
    for (std::int64_t patch = 0, start = 0; patch < patches; ++patch) {
        const std::int64_t pass = embeddings.shape[1];
        Tensor positions = zeros({rows, pass}, "int64"), mask = zeros({rows, 1, pass, length}, "bool");
        for (std::int64_t i = 0; i < rows * pass; ++i) {
            std::int64_t index = i % pass, last_seen = start + (index < pass - block ? index : pass - 1);
            positions.as<std::int64_t>()[i] = start + index;
            for (std::int64_t slot = 0; slot < length; ++slot) mask.as<char>()[i * length + slot] = slot <= last_seen;
        }
        Tensor cache_position = tensor<std::int64_t>({rows}, "int64", {start, start});
        Tensor patch_index = tensor<std::int64_t>({1}, "int64", {patch});
        std::map<std::string, Tensor*> inputs = {{"embeddings", &embeddings},         {"positions", &positions},
                                                 {"mask", &mask},                     {"cache_position", &cache_position},
                                                 {"patch_index", &patch_index}};
        for (auto& [name, values] : past) inputs[name] = &values;
        auto result = bundle.run("backbone", inputs, {{"R", rows}, {"T", pass}});
        for (auto& [name, values] : past) values = result.at("present" + name.substr(name.find('.')));
        Tensor condition = result.at("condition");
        start += pass;

        double guidance = sampling["guidance"];
        if (sampling["guidance_schedule"] == "linear") guidance = 1 + (guidance - 1) * patch / patches;
        const std::int64_t draws = guidance == 1 ? rows : 1;  // at guidance 1 all rows are drawn apart
        const int values = static_cast<int>(block * bits);
        std::vector<std::vector<float>> noise;
        for (std::int64_t stream = 0; stream < draws; ++stream)
            noise.push_back(normals(seed, stream, patch, evaluations, values));
        auto draw = [&](int step) {
            std::vector<float> drawn;
            for (auto& of : noise) drawn.insert(drawn.end(), of.begin() + step * values, of.begin() + (step + 1) * values);
            if (step && sampling["sampler"] == "ode") drawn.assign(drawn.size(), 0);
            return tensor<float>({draws, block, bits}, "float32", drawn);
        };
        auto tables = bundle.run("modulation", {{"time_embeddings", &time_embeddings}, {"condition", &condition}},
                                 {{"M", evaluations}, {"R", rows}});
        Tensor guided = tensor<float>({1}, "float32", {static_cast<float>(guidance)});
        Tensor of = tensor<std::int64_t>({rows}, "int64", {0, draws - 1});
        Tensor x = draw(0);
        for (int k = 0; k < evaluations; ++k) {
            Tensor abc = tensor<float>({3}, "float32", {&coefficients[3 * k], &coefficients[3 * k] + 3});
            Tensor drawn = draw(std::min(k + 1, evaluations - 1));  // the last evaluation multiplies it by zero
            inputs = {{"x", &x}, {"coefficients", &abc}, {"guidance", &guided}, {"noise", &drawn}, {"rows", &of}};
            std::map<std::string, Tensor> modulation;
            for (auto& [name, table] : tables) {
                std::size_t part = table.bytes.size() / evaluations;
                modulation[name] = {Shape(table.shape.begin() + 1, table.shape.end()), table.dtype,
                                    {table.bytes.begin() + k * part, table.bytes.begin() + (k + 1) * part}};
                inputs[name] = &modulation[name];
            }
            x = bundle.run("head", inputs, {{"B", draws}})["x_next"];
        }
        result = bundle.run("tokens", {{"x", &x}, {"rows", &of}, {"patch_index", &patch_index}},
                            {{"B", draws}, {"R", rows}});
        embeddings = result.at("embeddings");
        float* made = result.at("tokens").as<float>();
        tokens.insert(tokens.end(), made, made + values);
    }

    std::ofstream file("tokens.bin", std::ios::binary);
    for (float token : tokens) file.put(token > 0 ? 1 : -1);
    const std::int64_t square = model["patch_side"].get<int>() * model["patch_side"].get<int>();
    const Shape shape = {1, down, across, square, bits};
    Tensor latent = tensor<float>(shape, "float32", tokens);
    Tensor texture = tensor<float>(shape, "float32", normals(seed, 2, 0, 1, static_cast<int>(tokens.size())));
    Tensor pixels = bundle.run("decoder", {{"tokens", &latent}, {"noise", &texture}},
                               {{"B", 1}, {"PH", down}, {"PW", across}})["pixels"];
    std::ofstream image("image.ppm", std::ios::binary);
    image << "P6\n" << pixels.shape[2] << " " << pixels.shape[1] << "\n255\n";
    image.write(pixels.bytes.data(), static_cast<std::streamsize>(pixels.bytes.size()));
    return 0;
}
