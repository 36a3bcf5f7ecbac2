// Which experts a token goes to, and with what weight.

#include "cuda/memory.cuh"
#include "cuda/route.cuh"

struct RouteParams {
    Routing routing;
    uint32_t* ids;   // [count, k]
    float* weights;  // [count, k]
    uint32_t count;
};

// A warp for each token.
KERNEL(route, RouteParams, 128) {
    pdl_trigger();
    pdl_wait();
    const uint32_t token = blockIdx.x * 4 + warp_id(), lane = lane_id();
    if (token >= p.count) return;
    const Chosen chosen = route_token(p.routing, token);
    if (lane >= p.routing.k) return;
    p.ids[uint64_t(token) * p.routing.k + lane] = chosen.id;
    p.weights[uint64_t(token) * p.routing.k + lane] = chosen.weight;
}
