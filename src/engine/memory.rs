//! Giving memory back to the system that loading a model took and serving it does not need.

/// Returns what was freed. Where many small blocks are freed among others that stay, as while a
/// network is compiled, glibc keeps their pages until it is asked for them.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
pub fn return_freed_memory() {
    // SAFETY: `malloc_trim` takes an integer, may be called at any time and by any thread, and only
    // gives back pages that hold no block in use.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn return_freed_memory() {}

/// Takes the pages of `data`, which is part of the program's file, out of memory. They come back
/// from the file when they are read again.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
pub fn forget(data: &'static [u8]) {
    let page = rustix::param::page_size();
    // Pages that it shares with other data stay.
    let start = data.as_ptr().align_offset(page).min(data.len());
    let len = (data.len() - start) / page * page;
    if len == 0 {
        return;
    }
    // SAFETY: the range consists of whole pages within a `static` that has no interior mutability,
    // so it is mapped for the whole run of the program and has never been written to. The mapping of
    // a program's file is private, for which `MADV_DONTNEED` means that pages are read from the file
    // again; their content is the same before and after.
    unsafe {
        let start = data.as_ptr().add(start).cast_mut().cast();
        libc::madvise(start, len, libc::MADV_DONTNEED);
    }
}

#[cfg(not(target_os = "linux"))]
pub fn forget(_: &'static [u8]) {}
