//! Launches recorded once and replayed with one call.

use candle_core::cuda_backend::cudarc::driver::{sys, CudaGraph};
use candle_core::{bail, Device, Result};

use super::real::{executor, failed};

/// A recorded stretch of work.
pub(crate) struct Graph {
    graph: CudaGraph,
    nodes: Vec<sys::CUgraphNode>,
}

// SAFETY: the driver's handles belong to no thread, and every call binds the context first. Calls are
// not made from two threads at once: nothing here is `Sync`.
unsafe impl Send for Graph {}

/// [`crate::device::capture`]; candle's host copies are refused while it records.
pub(crate) fn capture<R>(device: &Device, f: impl FnOnce() -> Result<R>) -> Result<(Graph, R)> {
    let cuda = device.as_cuda_device()?;
    let stream = executor(cuda)?.stream().clone();
    stream.synchronize().map_err(failed("wait"))?;
    let _no_host_copies = cuda.enable_cuda_graph_htod_cache();
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).map_err(failed("capture"))?;
    let body = f();
    // An error that a destructor could not return is stored, and would make `end_capture` return
    // without ending it.
    let stored = stream.context().check_err();
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0));
    let value = body?;
    stored.map_err(failed("something freed while capturing"))?;
    let Some(graph) = graph.map_err(failed("capture"))? else {
        bail!("CUDA: the capture recorded nothing");
    };
    graph.upload().map_err(failed("graph upload"))?;
    let nodes = nodes_of(&graph)?;
    Ok((Graph { graph, nodes }, value))
}

impl Graph {
    /// Queues all of it behind what is queued already.
    ///
    /// # Errors
    /// The driver's.
    pub(crate) fn launch(&self) -> Result<()> {
        self.graph.launch().map_err(failed("graph launch"))
    }

    /// Launches recorded.
    pub(crate) fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Nodes that are no kernels: copies, fills, allocations. Each cuts the chain.
    ///
    /// # Errors
    /// The driver's.
    pub(crate) fn other_nodes(&self) -> Result<usize> {
        let mut others = 0;
        for &node in &self.nodes {
            let mut kind = sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_KERNEL;
            // SAFETY: the node belongs to a graph that is alive.
            unsafe { sys::cuGraphNodeGetType(node, &mut kind) }
                .result()
                .map_err(failed("graph"))?;
            others += usize::from(kind != sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_KERNEL);
        }
        Ok(others)
    }

    /// Edges along which a kernel may begin before its predecessor has ended.
    ///
    /// # Errors
    /// The driver's.
    pub(crate) fn programmatic_edges(&self) -> Result<usize> {
        let graph = self.graph.cu_graph();
        let mut count = 0;
        // SAFETY: with null arrays the driver writes the number of edges only.
        unsafe {
            let (from, to) = (std::ptr::null_mut(), std::ptr::null_mut());
            sys::cuGraphGetEdges_v2(graph, from, to, std::ptr::null_mut(), &mut count)
        }
        .result()
        .map_err(failed("graph"))?;
        let mut from = vec![std::ptr::null_mut(); count];
        let mut to = vec![std::ptr::null_mut(); count];
        let blank = sys::CUgraphEdgeData { from_port: 0, to_port: 0, type_: 0, reserved: [0; 5] };
        let mut edges = vec![blank; count];
        // SAFETY: the arrays have room for the number of edges just asked for.
        unsafe {
            let (from, to) = (from.as_mut_ptr(), to.as_mut_ptr());
            sys::cuGraphGetEdges_v2(graph, from, to, edges.as_mut_ptr(), &mut count)
        }
        .result()
        .map_err(failed("graph"))?;
        let programmatic =
            sys::CUgraphDependencyType_enum::CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC as u8;
        Ok(edges.iter().take(count).filter(|edge| edge.type_ == programmatic).count())
    }
}

fn nodes_of(graph: &CudaGraph) -> Result<Vec<sys::CUgraphNode>> {
    let mut count = 0;
    // SAFETY: with a null array the driver writes the number of nodes only.
    unsafe { sys::cuGraphGetNodes(graph.cu_graph(), std::ptr::null_mut(), &mut count) }
        .result()
        .map_err(failed("graph"))?;
    let mut nodes = vec![std::ptr::null_mut(); count];
    // SAFETY: the array has room for the number just asked for.
    unsafe { sys::cuGraphGetNodes(graph.cu_graph(), nodes.as_mut_ptr(), &mut count) }
        .result()
        .map_err(failed("graph"))?;
    nodes.truncate(count);
    Ok(nodes)
}
