//! The bundled model's serving graph, typed FP16 as TensorRT gets it, computed by the kernels of
//! `kernels.cu`: the operators that a ResNet has, with values in float16 and sums in float32.

use std::{collections::HashMap, ffi::c_void, sync::Arc};

use cudarc::driver::{CudaSlice, DevicePtr, DriverError};
use prost::Message;
use resnet18_server::{
    engine::tensorrt::plumbing::{Failure, Memory, Network, Shape},
    model::{
        BodyPrecision, IMAGES, LOGITS, Model,
        onnx::{ModelProto, NodeProto, TensorProto},
    },
};

use super::kernels::{Arguments, Kernel, Module};

/// Addresses in scratch memory are multiples of this.
const ALIGNMENT: usize = 256;

/// The type of values, as `kernels.cu` counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    U8,
    F32,
    F16,
}

impl Kind {
    fn of(onnx: i64) -> Self {
        match onnx {
            1 => Self::F32,
            2 => Self::U8,
            10 => Self::F16,
            other => panic!("there are no kernels for ONNX's type {other}"),
        }
    }

    fn bytes(self) -> usize {
        [1, 4, 2][self as usize]
    }
}

/// Where a tensor is.
#[derive(Clone, Copy, Debug)]
enum Place {
    Images,
    Logits,
    /// In scratch memory, so many bytes for each image behind its beginning.
    Scratch(usize),
    Weights(u64),
}

#[derive(Clone, Debug)]
struct Tensor {
    place: Place,
    kind: Kind,
    /// Of one image; of all for weights.
    dims: Vec<usize>,
}

impl Tensor {
    fn len(&self) -> usize {
        self.dims.iter().product()
    }
}

struct Step {
    kernel: Kernel,
    x: Tensor,
    y: Option<Tensor>,
    z: Option<Tensor>,
    out: Tensor,
    size: [i32; 11],
}

/// A graph on a GPU.
pub struct Graph {
    steps: Vec<Step>,
    /// Bytes of scratch memory for each image.
    scratch: usize,
    /// Only kept.
    _weights: Vec<CudaSlice<u8>>,
    _module: Arc<Module>,
    pub shape: Shape,
}

impl Graph {
    pub fn load(
        module: &Arc<Module>,
        model: &Model,
        max_batch: usize,
    ) -> Result<Arc<Self>, DriverError> {
        let onnx = model.graph.to_onnx(None, BodyPrecision::Fp16).unwrap();
        let onnx = ModelProto::decode(onnx.as_slice()).unwrap();
        let graph = onnx.graph.as_ref().unwrap();
        let [height, width] = [model.geometry.height, model.geometry.width];
        let mut loader = Loader {
            module,
            tensors: HashMap::new(),
            steps: Vec::new(),
            scratch: 0,
            weights: Vec::new(),
        };
        let images = Tensor {
            place: Place::Images,
            kind: Kind::U8,
            dims: vec![height as usize, width as usize, 3],
        };
        loader.tensors.insert(IMAGES.into(), images);
        for tensor in &graph.initializer {
            loader.weights(tensor)?;
        }
        for node in &graph.node {
            loader.node(node)?;
        }
        module.context.default_stream().synchronize()?;
        Ok(Arc::new(Self {
            steps: loader.steps,
            scratch: loader.scratch,
            _weights: loader.weights,
            _module: Arc::clone(module),
            shape: Shape {
                image: [height.into(), width.into(), 3],
                classes: model.graph.classes,
                max_batch,
            },
        }))
    }

    /// How many kernels run for a batch.
    pub fn len(&self) -> usize {
        self.steps.len()
    }
}

struct Loader<'a> {
    module: &'a Arc<Module>,
    tensors: HashMap<String, Tensor>,
    steps: Vec<Step>,
    scratch: usize,
    weights: Vec<CudaSlice<u8>>,
}

impl Loader<'_> {
    fn weights(&mut self, tensor: &TensorProto) -> Result<(), DriverError> {
        let kind = match tensor.data_type() {
            // Shapes and the like are read on the CPU.
            7 => return Ok(()),
            other => Kind::of(other.into()),
        };
        let bytes = tensor.raw_data.as_deref().unwrap_or_default();
        let dims: Vec<usize> = tensor.dims.iter().map(|dim| *dim as usize).collect();
        let count: usize = dims.iter().product();
        assert_eq!(bytes.len(), count * kind.bytes(), "{}", tensor.name());
        let stream = self.module.context.default_stream();
        let weights = stream.clone_htod(bytes)?;
        let address = weights.device_ptr(&stream).0;
        self.weights.push(weights);
        let place = Place::Weights(address);
        self.tensors
            .insert(tensor.name().to_owned(), Tensor { place, kind, dims });
        Ok(())
    }

    fn node(&mut self, node: &NodeProto) -> Result<(), DriverError> {
        let tensor = |index: usize| self.tensors.get(node.input.get(index)?).cloned();
        let x = tensor(0).unwrap_or_else(|| panic!("{}: no input", node.op_type()));
        let (y, z) = (tensor(1), tensor(2));
        let ints = |name: &str| -> Vec<i32> {
            let attribute = node.attribute.iter().find(|it| it.name() == name);
            let ints = attribute.map(|it| it.ints.clone()).unwrap_or_default();
            ints.into_iter().map(|int| int as i32).collect()
        };
        let int = |name: &str| {
            let attribute = node.attribute.iter().find(|it| it.name() == name);
            attribute.map_or(0, |it| it.i())
        };
        let is_square = |values: &[i32]| values.iter().all(|value| *value == values[0]);
        // Kernel, stride and padding, the same in all directions.
        let window = || {
            let [kernel, strides, pads] = ["kernel_shape", "strides", "pads"].map(ints);
            assert!(is_square(&kernel) && is_square(&strides) && is_square(&pads));
            assert!(ints("dilations").iter().all(|dilation| *dilation == 1));
            assert!(int("group") <= 1 && int("ceil_mode") == 0);
            let pad = pads.first().copied().unwrap_or(0);
            let stride = strides.first().copied().unwrap_or(1);
            (kernel[0], stride, pad)
        };

        let (mut kind, mut dims) = (x.kind, x.dims.clone());
        let n = |index: usize| x.dims[index] as i32;
        let (name, size) = match node.op_type() {
            "Flatten" => {
                let flat = Tensor {
                    dims: vec![x.len()],
                    ..x
                };
                self.tensors.insert(node.output[0].clone(), flat);
                return Ok(());
            }
            "Cast" => {
                kind = Kind::of(int("to"));
                ("cast", vec![])
            }
            "Transpose" => {
                assert_eq!(ints("perm"), [0, 3, 1, 2]);
                dims = vec![x.dims[2], x.dims[0], x.dims[1]];
                ("planes", vec![n(2), n(0) * n(1)])
            }
            "Add" | "Mul" => {
                let other = y.as_ref().unwrap();
                let (len, repeat) = match other.place {
                    Place::Weights(_) if other.len() == 1 => (1, 1),
                    Place::Weights(_) => {
                        assert_eq!(other.len(), x.dims[0]);
                        (n(0), (x.len() / x.dims[0]) as i32)
                    }
                    _ => {
                        assert_eq!(other.dims, x.dims);
                        (0, 1)
                    }
                };
                let is_product = i32::from(node.op_type() == "Mul");
                ("combine", vec![is_product, len, repeat])
            }
            "Relu" => ("relu", vec![]),
            "Conv" => {
                let (kernel, stride, pad) = window();
                let out = |size: i32| (size + 2 * pad - kernel) / stride + 1;
                let outputs = y.as_ref().unwrap().dims[0];
                let (rows, columns) = (out(n(1)), out(n(2)));
                dims = vec![outputs, rows as usize, columns as usize];
                let outputs = outputs as i32;
                let (inputs, height, width) = (n(0), n(1), n(2));
                let size = [
                    inputs, height, width, outputs, rows, columns, kernel, stride, pad,
                ];
                ("convolve", size.to_vec())
            }
            "MaxPool" => {
                let (kernel, stride, pad) = window();
                let out = |size: i32| (size + 2 * pad - kernel) / stride + 1;
                let (rows, columns) = (out(n(1)), out(n(2)));
                dims = vec![x.dims[0], rows as usize, columns as usize];
                let size = [n(1), n(2), rows, columns, kernel, stride, pad];
                ("pool", size.to_vec())
            }
            "GlobalAveragePool" => {
                dims = vec![x.dims[0], 1, 1];
                ("average", vec![n(1) * n(2)])
            }
            "Gemm" => {
                assert_eq!(int("transB"), 1);
                let outputs = y.as_ref().unwrap().dims[0];
                dims = vec![outputs];
                ("linear", vec![x.len() as i32, outputs as i32])
            }
            other => panic!("there is no kernel for {other}"),
        };
        for weights in [&y, &z].into_iter().flatten() {
            assert_eq!(weights.kind, x.kind, "{}", node.op_type());
        }

        let output = &node.output[0];
        let mut out = Tensor {
            place: Place::Logits,
            kind,
            dims,
        };
        if output != LOGITS {
            out.place = Place::Scratch(self.scratch);
            self.scratch += (out.len() * kind.bytes()).next_multiple_of(ALIGNMENT);
        }
        self.tensors.insert(output.clone(), out.clone());
        let mut sizes = [0; 11];
        sizes[..size.len()].copy_from_slice(&size);
        self.steps.push(Step {
            kernel: self.module.kernel(name)?,
            x,
            y,
            z,
            out,
            size: sizes,
        });
        Ok(())
    }
}

/// A graph that runs one batch at a time.
pub struct Resnet {
    graph: Arc<Graph>,
    batch: usize,
    memory: Option<Memory>,
}

impl Resnet {
    pub fn new(graph: &Arc<Graph>) -> Self {
        Self {
            graph: Arc::clone(graph),
            batch: 0,
            memory: None,
        }
    }
}

impl Network for Resnet {
    const RECORDED_BY_LANE: bool = true;

    fn set_images(&mut self, [n, ..]: [i64; 4]) -> Result<(), Failure> {
        self.batch = n as usize;
        Ok(())
    }

    fn scratch_size(&mut self) -> Result<usize, Failure> {
        Ok(self.batch * self.graph.scratch)
    }

    unsafe fn set_memory(&mut self, memory: Memory) -> Result<(), Failure> {
        self.memory = Some(memory);
        Ok(())
    }

    unsafe fn enqueue(&mut self, stream: *mut c_void) -> Result<(), Failure> {
        let memory = self
            .memory
            .ok_or_else(|| Failure::new("there is no memory"))?;
        assert!(self.batch * self.graph.scratch <= memory.scratch.1);
        let address = |tensor: &Tensor| match tensor.place {
            Place::Images => memory.images,
            Place::Logits => memory.logits,
            Place::Scratch(offset) => memory.scratch.0 + (self.batch * offset) as u64,
            Place::Weights(address) => address,
        };
        for step in &self.graph.steps {
            let arguments = Arguments {
                x: address(&step.x),
                y: step.y.as_ref().map_or(0, address),
                z: step.z.as_ref().map_or(0, address),
                out: address(&step.out),
                n: (self.batch * step.out.len()) as i32,
                from: step.x.kind as i32,
                to: step.out.kind as i32,
                size: step.size,
            };
            // SAFETY: the lane vouches for its memory, which the assertion above has found to be
            // enough, and for the stream; the graph keeps its module and weights.
            unsafe { step.kernel.launch(arguments, stream) }
                .map_err(|error| Failure::new(error.to_string()))?;
        }
        Ok(())
    }

    unsafe fn is_capturable(&self, _: *mut c_void) -> bool {
        true
    }
}
