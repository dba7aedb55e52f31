// Exact softmax attention with relative positions on a CPU, forward and backward, in float32.
//
// Attention Augmented Convolutional Networks (arXiv 1904.09925), section 3.1. A tile is some queries of one head against
// all keys. In its matrices (keys or channels, queries) the queries are the lanes of the vectors, so sums over keys and
// channels need no sum over lanes, and head dims of any size leave no lane idle. `cpp_attention.py` calls it.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

struct Strided {  // (B, num_heads, H * W, dim)
    void* data;
    int64_t image, head, position, channel;
};

struct Problem {
    int32_t images, num_heads, H, W, dim_k, dim_v, causal;
    float scale;
    const float *rel_h, *rel_w;  // (2 * H - 1, dim_k), (2 * W - 1, dim_k); or none
    Strided q, k, v, out;        // `out` is the gradient of the output in the backward pass
    Strided grad_q, grad_k, grad_v;
    float *grad_h, *grad_w;
};

namespace {

// --- vectors

#if defined(__AVX512F__)
constexpr int LANES = 16, ACCUMULATORS = 24;  // of 32 registers
#else
constexpr int LANES = 8, ACCUMULATORS = 12;  // of 16
#endif
constexpr int WIDEST = 4 * LANES;  // lanes of a tile
constexpr int CHUNK = 64;          // keys whose matrices stay in the fastest cache from one step to the next
constexpr float LOG2_E = 1.44269504f;

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));

inline Vector& at(float* p) { return *reinterpret_cast<Vector*>(p); }
inline const Vector& at(const float* p) { return *reinterpret_cast<const Vector*>(p); }
inline int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// 2^x for x <= 0, as exact as float32 is; 0 below 2^-80, beside 1 nothing, so that products with it stay normal numbers
inline Vector exp2(Vector x) {
    const Integers vanishes = x < -80.f;
    x = vanishes ? Vector{} - 80.f : x;
    const Vector shifted = x + 12582912.f;  // the nearest integer in the lowest bits
    x = x - (shifted - 12582912.f);
    Vector y = x * 1.535336189e-4f + 1.339887442e-3f;  // a polynomial of least error on [-1/2, 1/2]
    y = y * x + 9.618437358e-3f;
    y = y * x + 5.550332471e-2f;
    y = y * x + 2.402264791e-1f;
    y = y * x + 6.931472029e-1f;
    y = y * x + 1.f;
    const Vector power = (Vector)(((Integers)shifted + 127) << 23);
    return vanishes ? Vector{} : y * power;
}

// Zeros at first, aligned for vectors
class Buffer {
public:
    explicit Buffer(int64_t size) : data(static_cast<float*>(::operator new(size * sizeof(float), ALIGNMENT))) {
        std::fill_n(data.get(), size, 0.f);
    }
    operator float*() const { return data.get(); }
    float* get() const { return data.get(); }

private:
    static constexpr std::align_val_t ALIGNMENT{64};
    struct Free {
        void operator()(float* p) const { ::operator delete(p, ALIGNMENT); }
    };
    std::unique_ptr<float, Free> data;
};

// --- matrix products

// c (M, N vectors) = or += a (M, K) b (K, N vectors), with all of c in registers
template <int M, int N>
inline void block(int K, const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row, float* c,
                  int64_t c_row, bool add) {
    Vector sums[M][N];
#pragma GCC unroll 24
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) sums[m][n] = Vector{};
    for (int k = 0; k < K; k++) {
        Vector row[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) row[n] = at(b + k * b_row + n * LANES);
#pragma GCC unroll 24
        for (int m = 0; m < M; m++) {
            const float factor = a[m * a_row + k * a_column];
#pragma GCC unroll 4
            for (int n = 0; n < N; n++) sums[m][n] += factor * row[n];
        }
    }
#pragma GCC unroll 24
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) {
            Vector& target = at(c + m * c_row + n * LANES);
            target = add ? target + sums[m][n] : sums[m][n];
        }
}

template <int M, int N>
inline void blocks(int& m, int rows, int K, const float* a, int64_t a_row, int64_t a_column, const float* b,
                   int64_t b_row, float* c, int64_t c_row, bool add) {
    for (; m + M <= rows; m += M) block<M, N>(K, a + m * a_row, a_row, a_column, b, b_row, c + m * c_row, c_row, add);
}

template <int N>
void panel(int M, int K, const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row, float* c,
           int64_t c_row, bool add) {
    int m = 0;
    blocks<ACCUMULATORS / N, N>(m, M, K, a, a_row, a_column, b, b_row, c, c_row, add);
    if constexpr (ACCUMULATORS / N > 8) blocks<8, N>(m, M, K, a, a_row, a_column, b, b_row, c, c_row, add);
    if constexpr (ACCUMULATORS / N > 4) blocks<4, N>(m, M, K, a, a_row, a_column, b, b_row, c, c_row, add);
    blocks<2, N>(m, M, K, a, a_row, a_column, b, b_row, c, c_row, add);
    blocks<1, N>(m, M, K, a, a_row, a_column, b, b_row, c, c_row, add);
}

// c (M, columns) = or += a (M, K) b (K, columns). The rows and columns of a may lie anywhere, the rows of b and c are
// vectors.
void multiply(int M, int K, int columns, const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row,
              float* c, int64_t c_row, bool add = false) {
    for (int column = 0; column < columns; column += WIDEST) {
        auto compute = panel<4>;
        switch ((columns - column) / LANES) {
            case 1: compute = panel<1>; break;
            case 2: compute = panel<2>; break;
            case 3: compute = panel<3>; break;
        }
        compute(M, K, a, a_row, a_column, b + column, b_row, c + column, c_row, add);
    }
}

// --- the tensors' own memory

struct BFloat16 {
    uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(BFloat16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline void set(float& x, float value) { x = value; }
inline void set(BFloat16& x, float value) {  // to the nearest, of two to the even one
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    x.bits = value == value ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0;
}

// One head of a tensor, (positions, dim)
template <class Number>
class Head {
public:
    Head(const Strided& x, int32_t num_heads, int head)
        : data(static_cast<Number*>(x.data) + head / num_heads * x.image + head % num_heads * x.head),
          position(x.position), channel(x.channel) {}

    Number& operator()(int64_t i, int64_t d) const { return data[i * position + d * channel]; }

    // to (positions, dim), each row `length` long
    void copy_rows(int positions, int dim, float factor, float* rows, int64_t length) const {
        for (int i = 0; i < positions; i++)
            for (int d = 0; d < dim; d++) rows[i * length + d] = factor * to_float((*this)(i, d));
    }
    // to (dim, positions)
    void copy_columns(int positions, int dim, float factor, float* columns, int64_t length) const {
        for (int d = 0; d < dim; d++)
            for (int i = 0; i < positions; i++) columns[d * length + i] = factor * to_float((*this)(i, d));
    }

private:
    Number* data;
    int64_t position, channel;
};

// --- attention

// The queries of a tile, from the first on, and the keys that they see
struct Tile {
    Tile(const Problem& p, int lanes, int first)
        : first(first), queries(std::min(lanes, p.H * p.W - first)), lanes(padded(queries)),
          columns(p.causal ? first + queries : p.W), keys(p.H * columns) {}
    int first, queries, lanes, columns, keys;
};

// As many queries as keep a tile's matrix within some bytes, so that it stays in a cache
int tile_lanes(const Problem& p, int64_t bytes) {
    int lanes = WIDEST;
    while (lanes > LANES && int64_t(p.H) * p.W * lanes * int64_t(sizeof(float)) > bytes) lanes /= 2;
    return lanes;
}

// Logits of a tile's queries against the rows, or the columns, of the map; or their gradient
class Relative {
public:
    Relative(const Problem& p, bool of_rows, int64_t lanes)
        : W(p.W), size(of_rows ? p.H : p.W), dim(p.dim_k), lanes(lanes), of_rows(of_rows),
          table(of_rows ? p.rel_h : p.rel_w), offsets((2 * size - 1) * lanes), values(size * lanes) {}

    float* operator[](int i) const { return values + i * lanes; }
    void clear() { std::fill_n(values.get(), size * lanes, 0.f); }

    void compute(const Tile& tile, const float* q, int64_t q_row) {
        if (!table) return clear();
        const auto [least, count] = range(tile);
        multiply(count, dim, tile.lanes, table + least * dim, dim, 1, q, q_row, offsets, lanes);
        for (int l = 0; l < tile.queries; l++) {
            const float* from = offsets + (size - 1 - own(tile.first + l) - least) * lanes + l;
            for (int i = 0; i < size; i++) values[i * lanes + l] = from[i * lanes];
        }
    }

    // Adds to the gradients of the tile's queries (dim, lanes) and of the table (2 * size - 1, q_length)
    void pass_on(const Tile& tile, const float* q, int64_t q_length, float* grad_q, float* grad_table) {
        if (!table) return;
        const auto [least, count] = range(tile);
        std::fill_n(offsets.get(), count * lanes, 0.f);
        for (int l = 0; l < tile.queries; l++) {
            float* to = offsets + (size - 1 - own(tile.first + l) - least) * lanes + l;
            for (int i = 0; i < size; i++) to[i * lanes] = values[i * lanes + l];
        }
        multiply(dim, count, tile.lanes, table + least * dim, 1, dim, offsets, lanes, grad_q, lanes, true);
        multiply(count, tile.queries, q_length, offsets, lanes, 1, q, q_length, grad_table + least * q_length, q_length,
                 true);
    }

private:
    // Where a query is on this axis: the offset of key i has the index i - own + size - 1
    int own(int query) const { return of_rows ? query / W : query % W; }

    // The first index of those that occur, and their number
    std::pair<int, int> range(const Tile& tile) const {
        int first = own(tile.first), last = own(tile.first + tile.queries - 1);
        if (!of_rows && (tile.first / W != (tile.first + tile.queries - 1) / W)) first = 0, last = W - 1;
        return {size - 1 - last, size + last - first};
    }

    int W, size, dim;
    int64_t lanes;
    bool of_rows;
    const float* table;
    Buffer offsets, values;
};

// A matrix (keys, lanes) of a tile
struct Matrix {
    explicit Matrix(int keys, int lanes) : lanes(lanes), data(int64_t(keys) * lanes) {}
    float* operator[](int64_t key) const { return data + key * lanes; }
    int lanes;
    Buffer data;
};

// Calls work(first key, keys) for one chunk of a tile's keys after another
template <class Work>
void by_chunks(const Tile& tile, Work work) {
    for (int key = 0; key < tile.keys; key += CHUNK) work(key, std::min(CHUNK, tile.keys - key));
}

// The logits of a tile, divided by log 2 as q is for exp2, and the largest of each query
void compute_logits(const Problem& p, const Tile& tile, const float* k, const float* q, int64_t q_row,
                    Relative& rows, Relative& columns, const Matrix& logits, float* largest) {
    rows.compute(tile, q, q_row);
    columns.compute(tile, q, q_row);
    std::fill_n(largest, tile.lanes, -__builtin_inff());
    int y = 0, x = 0;
    by_chunks(tile, [&](int first, int keys) {
        for (int j = first; j < first + keys; j++) {
            for (int l = 0; l < tile.lanes; l += LANES) at(logits[j] + l) = at(rows[y] + l) + at(columns[x] + l);
            if (++x == tile.columns) x = 0, y++;
        }
        multiply(keys, p.dim_k, tile.lanes, k + int64_t(first) * p.dim_k, p.dim_k, 1, q, q_row, logits[first],
                 logits.lanes, true);
        for (int j = std::max(first, tile.first + 1); p.causal && j < first + keys; j++)
            std::fill_n(logits[j], j - tile.first, -__builtin_inff());
        for (int l = 0; l < tile.lanes; l += LANES) {
            Vector most = at(largest + l);
            for (int j = first; j < first + keys; j++) {
                const Vector logit = at(logits[j] + l);
                most = logit > most ? logit : most;
            }
            at(largest + l) = most;
        }
    });
}

// Of a chunk, logits to weights that are not yet divided by their sums; adds to these
void exponentiate(const Tile& tile, int first, int keys, const float* largest, const Matrix& logits, float* sums) {
    for (int l = 0; l < tile.lanes; l += LANES) {
        const Vector most = at(largest + l);
        Vector sum = {};
        for (int j = first; j < first + keys; j++) {
            Vector& weight = at(logits[j] + l);
            weight = exp2(weight - most);
            sum += weight;
        }
        at(sums + l) += sum;
    }
}

template <class Number>
void forward(const Problem& p, int first_head, int last_head) {
    const int N = p.H * p.W, lanes = tile_lanes(p, 1 << 18);
    const int64_t q_row = padded(N);
    Buffer q(p.dim_k * q_row), k(N * p.dim_k), v(N * p.dim_v);
    Buffer out(p.dim_v * lanes), largest(lanes), sums(lanes);
    Matrix weights(N, lanes);
    Relative rows(p, true, lanes), columns(p, false, lanes);
    for (int head = first_head; head < last_head; head++) {
        Head<Number>(p.q, p.num_heads, head).copy_columns(N, p.dim_k, p.scale * LOG2_E, q, q_row);
        Head<Number>(p.k, p.num_heads, head).copy_rows(N, p.dim_k, 1, k, p.dim_k);
        Head<Number>(p.v, p.num_heads, head).copy_rows(N, p.dim_v, 1, v, p.dim_v);
        const Head<Number> result(p.out, p.num_heads, head);
        for (int first = 0; first < N; first += lanes) {
            const Tile tile(p, lanes, first);
            compute_logits(p, tile, k, q + first, q_row, rows, columns, weights, largest);
            std::fill_n(sums.get(), lanes, 0.f);
            by_chunks(tile, [&](int key, int keys) {
                exponentiate(tile, key, keys, largest, weights, sums);
                multiply(p.dim_v, keys, tile.lanes, v + int64_t(key) * p.dim_v, 1, p.dim_v, weights[key], lanes, out,
                         lanes, key > 0);
            });
            for (int d = 0; d < p.dim_v; d++)
                for (int l = 0; l < tile.queries; l++) set(result(first + l, d), out[d * lanes + l] / sums[l]);
        }
    }
}

// Of a chunk, from undivided weights and their gradients: the weights, the gradients of the logits, and what these add
// to the sums over the rows and the columns of the map
void pass_softmax(const Tile& tile, int first, int keys, const float* sums, const float* means, const Matrix& weights,
                  const Matrix& grads, const Relative& rows, const Relative& columns) {
    for (int l = 0; l < tile.lanes; l += LANES) {
        const Vector factor = 1.f / at(sums + l), mean = at(means + l) * factor;
        int y = first / tile.columns, x = first % tile.columns;
        Vector row = {};
        for (int j = first; j < first + keys; j++) {
            Vector &weight = at(weights[j] + l), &grad = at(grads[j] + l);
            weight *= factor;
            grad = weight * (grad - mean);
            row += grad;
            at(columns[x] + l) += grad;
            if (++x == tile.columns || j == first + keys - 1) {
                at(rows[y] + l) += row;
                row = Vector{}, x = 0, y++;
            }
        }
    }
}

// Adds to the gradients of the tables, (2 * H - 1, padded dim_k) and (2 * W - 1, padded dim_k)
template <class Number>
void backward(const Problem& p, int first_head, int last_head, float* grad_h, float* grad_w) {
    const int N = p.H * p.W, lanes = tile_lanes(p, 1 << 17);
    const int64_t q_row = padded(N), k_length = padded(p.dim_k), v_length = padded(p.dim_v);
    Buffer q_columns(p.dim_k * q_row), q(N * k_length), k(N * p.dim_k), v(N * p.dim_v);
    Buffer grad_columns(p.dim_v * q_row), grad(N * v_length);
    Buffer grad_q(p.dim_k * lanes), grad_k(N * k_length), grad_v(N * v_length);
    Buffer largest(lanes), sums(lanes), means(lanes);
    Matrix weights(N, lanes), grads(N, lanes);
    Relative rows(p, true, lanes), columns(p, false, lanes);
    for (int head = first_head; head < last_head; head++) {
        const Head<Number> of_q(p.q, p.num_heads, head), of_out(p.out, p.num_heads, head);
        of_q.copy_columns(N, p.dim_k, p.scale * LOG2_E, q_columns, q_row);
        of_q.copy_rows(N, p.dim_k, p.scale, q, k_length);
        of_out.copy_columns(N, p.dim_v, 1, grad_columns, q_row);
        of_out.copy_rows(N, p.dim_v, 1, grad, v_length);
        Head<Number>(p.k, p.num_heads, head).copy_rows(N, p.dim_k, 1, k, p.dim_k);
        Head<Number>(p.v, p.num_heads, head).copy_rows(N, p.dim_v, 1, v, p.dim_v);
        std::fill_n(grad_k.get(), N * k_length, 0.f);
        std::fill_n(grad_v.get(), N * v_length, 0.f);
        const Head<Number> result(p.grad_q, p.num_heads, head);
        for (int first = 0; first < N; first += lanes) {
            const Tile tile(p, lanes, first);
            compute_logits(p, tile, k, q_columns + first, q_row, rows, columns, weights, largest);
            std::fill_n(sums.get(), lanes, 0.f);
            std::fill_n(means.get(), lanes, 0.f);
            by_chunks(tile, [&](int key, int keys) {
                exponentiate(tile, key, keys, largest, weights, sums);
                multiply(keys, p.dim_v, tile.lanes, v + int64_t(key) * p.dim_v, p.dim_v, 1, grad_columns + first, q_row,
                         grads[key], lanes);
                for (int l = 0; l < tile.lanes; l += LANES) {
                    Vector mean = {};
                    for (int j = key; j < key + keys; j++) mean += at(weights[j] + l) * at(grads[j] + l);
                    at(means + l) += mean;
                }
            });
            rows.clear();
            columns.clear();
            const float *q_rows = q + first * k_length, *grad_rows = grad + first * v_length;
            by_chunks(tile, [&](int key, int keys) {
                pass_softmax(tile, key, keys, sums, means, weights, grads, rows, columns);
                multiply(p.dim_k, keys, tile.lanes, k + int64_t(key) * p.dim_k, 1, p.dim_k, grads[key], lanes, grad_q,
                         lanes, key > 0);
                multiply(keys, tile.queries, k_length, grads[key], lanes, 1, q_rows, k_length, grad_k + key * k_length,
                         k_length, true);
                multiply(keys, tile.queries, v_length, weights[key], lanes, 1, grad_rows, v_length,
                         grad_v + key * v_length, v_length, true);
            });
            rows.pass_on(tile, q_rows, k_length, grad_q, grad_h);
            columns.pass_on(tile, q_rows, k_length, grad_q, grad_w);
            for (int d = 0; d < p.dim_k; d++)
                for (int l = 0; l < tile.queries; l++) set(result(first + l, d), grad_q[d * lanes + l] * p.scale);
        }
        const Head<Number> of_k(p.grad_k, p.num_heads, head), of_v(p.grad_v, p.num_heads, head);
        for (int i = 0; i < N; i++) {
            for (int d = 0; d < p.dim_k; d++) set(of_k(i, d), grad_k[i * k_length + d]);
            for (int d = 0; d < p.dim_v; d++) set(of_v(i, d), grad_v[i * v_length + d]);
        }
    }
}

// --- threads

// work(thread, first head, last head) for all heads, by some threads of OpenMP: where PyTorch's are OpenMP's, the same
template <class Work>
void share(int heads, int threads, Work work) {
    const auto start = [&](int thread) { return int(int64_t(heads) * thread / threads); };
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int thread = 0; thread < threads; thread++) work(thread, start(thread), start(thread + 1));
}

template <class Number>
void run_forward(const Problem& p, int threads) {
    share(p.images * p.num_heads, threads, [&](int, int first, int last) { forward<Number>(p, first, last); });
}

template <class Number>
void run_backward(const Problem& p, int threads) {
    const int64_t length = padded(p.dim_k), of_h = (2 * p.H - 1) * length, size = of_h + (2 * p.W - 1) * length;
    Buffer tables(threads * size);  // for each thread its own: they are added in a fixed order
    share(p.images * p.num_heads, threads, [&](int thread, int first, int last) {
        backward<Number>(p, first, last, tables + thread * size, tables + thread * size + of_h);
    });
    const auto collect = [&](int rows, const float* from, float* to) {
        for (int row = 0; to && row < rows; row++)
            for (int d = 0; d < p.dim_k; d++) {
                float sum = 0;
                for (int thread = 0; thread < threads; thread++) sum += from[thread * size + row * length + d];
                to[row * p.dim_k + d] = sum;
            }
    };
    collect(2 * p.H - 1, tables, p.grad_h);
    collect(2 * p.W - 1, tables + of_h, p.grad_w);
}

}  // namespace

// `threads` is at most the number of heads of all images
extern "C" void attention_forward(const Problem* p, int32_t threads, int32_t bfloat16) {
    bfloat16 ? run_forward<BFloat16>(*p, threads) : run_forward<float>(*p, threads);
}

extern "C" void attention_backward(const Problem* p, int32_t threads, int32_t bfloat16) {
    bfloat16 ? run_backward<BFloat16>(*p, threads) : run_backward<float>(*p, threads);
}
