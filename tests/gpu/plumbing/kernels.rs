//! The kernels of `kernels.cu`: compiled by NVRTC, or read from a folder, and launched.

use std::{
    env,
    ffi::{CStr, CString, c_char, c_int, c_void},
    fs,
    path::{Path, PathBuf},
    ptr,
    sync::Arc,
};

use cudarc::driver::{CudaContext, DriverError, result, sys};
use libloading::{Library, Symbol};

const SOURCE: &CStr =
    match CStr::from_bytes_with_nul(concat!(include_str!("kernels.cu"), "\0").as_bytes()) {
        Ok(source) => source,
        Err(_) => panic!("the source contains a zero"),
    };

/// The threads of a block.
const THREADS: u32 = 256;

/// NVIDIA's compiler, which needs no GPU.
pub struct Nvrtc(Library);

/// A program as NVRTC knows it.
type Program = *mut c_void;
type Text = *const c_char;

impl Nvrtc {
    /// The library that `make nvrtc` fetched, if it did.
    pub fn find() -> Option<Self> {
        let folder =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(".runtime/nvrtc/nvidia/cuda_nvrtc/lib");
        let library = folder.join("libnvrtc.so.12");
        // SAFETY: loading NVRTC only sets up its own state. It finds its other file beside itself.
        unsafe { Library::new(library) }.ok().map(Self)
    }

    /// The generations of GPUs that it compiles for, such as 90.
    pub fn targets(&self) -> Vec<u32> {
        // SAFETY: `nvrtc.h` declares the functions with these types, and the list has room for as
        // many numbers as the first one tells.
        unsafe {
            let count: Symbol<extern "C" fn(*mut c_int) -> c_int> =
                self.0.get(b"nvrtcGetNumSupportedArchs").unwrap();
            let list: Symbol<extern "C" fn(*mut c_int) -> c_int> =
                self.0.get(b"nvrtcGetSupportedArchs").unwrap();
            let mut n = 0;
            assert_eq!(count(&mut n), 0);
            let mut targets = vec![0; n as usize];
            assert_eq!(list(targets.as_mut_ptr()), 0);
            targets.into_iter().map(|target| target as u32).collect()
        }
    }

    /// The kernels as machine code for GPUs of this generation.
    ///
    /// # Errors
    /// What the compiler says.
    pub fn compile(&self, target: u32) -> Result<Vec<u8>, String> {
        let option = CString::new(format!("--gpu-architecture=sm_{target}")).unwrap();
        // SAFETY: `nvrtc.h` declares the functions with these types; all texts end with a zero, and
        // buffers have the sizes that the functions before them tell.
        unsafe {
            let create: Symbol<
                extern "C" fn(*mut Program, Text, Text, c_int, *const Text, *const Text) -> c_int,
            > = self.0.get(b"nvrtcCreateProgram").unwrap();
            let compile: Symbol<extern "C" fn(Program, c_int, *const Text) -> c_int> =
                self.0.get(b"nvrtcCompileProgram").unwrap();
            let destroy: Symbol<extern "C" fn(*mut Program) -> c_int> =
                self.0.get(b"nvrtcDestroyProgram").unwrap();
            let mut program = ptr::null_mut();
            let name = c"kernels.cu".as_ptr();
            let none = ptr::null();
            assert_eq!(
                create(&mut program, SOURCE.as_ptr(), name, 0, none, none),
                0
            );
            let compiled = compile(program, 1, &option.as_ptr());
            let result = if compiled == 0 {
                Ok(self.output(program, b"nvrtcGetCUBINSize", b"nvrtcGetCUBIN"))
            } else {
                let log = self.output(program, b"nvrtcGetProgramLogSize", b"nvrtcGetProgramLog");
                Err(String::from_utf8_lossy(&log).into_owned())
            };
            destroy(&mut program);
            result
        }
    }

    /// What a pair of functions gives, which tell its size and write it.
    ///
    /// # Safety
    /// They must be such functions of NVRTC's, and the program alive.
    unsafe fn output(&self, program: Program, size: &[u8], write: &[u8]) -> Vec<u8> {
        // SAFETY: the caller vouches for the functions and the program.
        unsafe {
            let size: Symbol<extern "C" fn(Program, *mut usize) -> c_int> =
                self.0.get(size).unwrap();
            let write: Symbol<extern "C" fn(Program, *mut u8) -> c_int> =
                self.0.get(write).unwrap();
            let mut bytes = 0;
            assert_eq!(size(program, &mut bytes), 0);
            let mut output = vec![0; bytes];
            assert_eq!(write(program, output.as_mut_ptr()), 0);
            output
        }
    }
}

/// The file for a generation of GPUs in the folder that `PLUMBING_KERNELS` names.
pub fn file(folder: &Path, target: u32) -> PathBuf {
    folder.join(format!("sm_{target}.cubin"))
}

/// The kernels for a generation of GPUs, and where they come from.
///
/// # Errors
/// Why there are none.
pub fn image(target: u32) -> Result<(Vec<u8>, String), String> {
    if let Some(nvrtc) = Nvrtc::find() {
        let image = nvrtc.compile(target)?;
        return Ok((image, "compiled now by NVRTC".into()));
    }
    let folder = env::var_os("PLUMBING_KERNELS")
        .ok_or("there is neither NVRTC (`make nvrtc`) nor a folder of compiled kernels")?;
    let file = file(Path::new(&folder), target);
    let image = fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    Ok((image, format!("read from {}", file.display())))
}

/// The kernels on a GPU.
pub struct Module {
    module: sys::CUmodule,
    pub context: Arc<CudaContext>,
}

// SAFETY: CUDA's modules belong to a context and may be used from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// A kernel of a module; it is used no longer than that.
#[derive(Clone, Copy)]
pub struct Kernel(sys::CUfunction);

// SAFETY: as for `Module`.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// What every kernel takes; `kernels.cu` says what it means.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Arguments {
    pub x: u64,
    pub y: u64,
    pub z: u64,
    pub out: u64,
    pub n: i32,
    pub from: i32,
    pub to: i32,
    pub size: [i32; 11],
}

impl Module {
    pub fn load(context: &Arc<CudaContext>, image: &[u8]) -> Result<Arc<Self>, DriverError> {
        context.bind_to_thread()?;
        // SAFETY: the image is machine code that NVRTC made, and is alive during the call.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) }?;
        Ok(Arc::new(Self {
            module,
            context: Arc::clone(context),
        }))
    }

    pub fn kernel(&self, name: &str) -> Result<Kernel, DriverError> {
        let name = CString::new(name).unwrap();
        // SAFETY: the module is loaded.
        unsafe { result::module::get_function(self.module, name) }.map(Kernel)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let _ = self.context.bind_to_thread();
        // SAFETY: the module is loaded, and nothing runs any more when its networks are gone.
        let _ = unsafe { result::module::unload(self.module) };
    }
}

impl Kernel {
    /// Queues the kernel with a thread for each value of its output.
    ///
    /// # Safety
    /// The kernel's module must be loaded, its context bound to this thread, and the addresses those
    /// of enough memory of the GPU.
    pub unsafe fn launch(
        self,
        mut arguments: Arguments,
        stream: *mut c_void,
    ) -> Result<(), DriverError> {
        let blocks = (arguments.n as u32).div_ceil(THREADS);
        let mut parameters = [(&raw mut arguments).cast::<c_void>()];
        // SAFETY: the caller vouches for the kernel and the addresses. CUDA copies the arguments
        // before it returns.
        unsafe {
            result::launch_kernel(
                self.0,
                (blocks, 1, 1),
                (THREADS, 1, 1),
                0,
                stream.cast(),
                &mut parameters,
            )
        }
    }
}
