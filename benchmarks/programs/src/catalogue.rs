//! What programs there are.

use std::io;
use std::path::PathBuf;

use crate::{floating, integer, memory, pair, shell, system, vector};

/// Does a number of operations and gives a checksum of what they computed.
///
/// The first call after the start has the same checksum for the same number everywhere.
pub(crate) type Work = Box<dyn FnMut(u64) -> io::Result<u64>>;

/// What programs need to know of the place where they run.
#[derive(Debug)]
pub(crate) struct Setting {
    /// A statically linked BusyBox.
    pub(crate) busybox: PathBuf,
    /// A folder for files, in memory.
    pub(crate) folder: PathBuf,
}

/// One program.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    /// The programs of a group have one mean.
    pub(crate) group: &'static str,
    /// How many processors it needs.
    pub(crate) processors: u32,
    /// What one operation is.
    pub(crate) operation: &'static str,
    /// How many operations the checksum is of.
    pub(crate) fixed: u64,
    /// Prepares the work. Fails with [`io::ErrorKind::Unsupported`] where it cannot run.
    pub(crate) start: fn(&Setting) -> io::Result<Work>,
}

const fn program(
    group: &'static str,
    name: &'static str,
    operation: &'static str,
    fixed: u64,
    start: fn(&Setting) -> io::Result<Work>,
) -> Program {
    Program {
        name,
        group,
        processors: 1,
        operation,
        fixed,
        start,
    }
}

const fn pair(
    name: &'static str,
    operation: &'static str,
    fixed: u64,
    start: fn(&Setting) -> io::Result<Work>,
) -> Program {
    Program {
        processors: 2,
        ..program("two-processors", name, operation, fixed, start)
    }
}

/// All programs, in the order of the table.
#[rustfmt::skip]
pub(crate) const PROGRAMS: &[Program] = &[
    program("integer", "sieve", "primes below 32768", 4, integer::sieve),
    program("integer", "crc32", "CRC-32 of 16 KiB by table", 8, integer::crc32),
    program("integer", "sort-numbers", "sorting 2048 numbers", 4, integer::sort),
    program("integer", "recursion", "fib(18) by recursion", 4, integer::recursion),
    program("integer", "division", "1024 divisions", 8, integer::division),
    program("integer", "bytecode", "4000 steps of a bytecode interpreter", 4, integer::bytecode),
    program("integer", "indirect-calls", "1024 calls through pointers", 8, integer::indirect_calls),
    program("floating", "matrix-scalar", "product of 32x32 doubles", 2, floating::matrix),
    program("floating", "matrix-sse", "product of 64x64 floats, SSE", 2, vector::matrix_sse),
    program("floating", "matrix-avx", "product of 64x64 floats, AVX2 and FMA", 2, vector::matrix_avx),
    program("floating", "n-body", "100 steps of 5 bodies", 2, floating::n_body),
    program("floating", "x87", "256 steps in extended precision", 4, floating::x87),
    program("floating", "vector-integer", "4 KiB of a stream cipher, SSE2", 4, vector::cipher),
    program("bulk", "copy", "memcpy of 64 KiB", 8, memory::copy),
    program("bulk", "copy-large", "memcpy of 8 MiB", 1, memory::copy_large),
    program("bulk", "set", "memset of 64 KiB", 8, memory::set),
    program("bulk", "stream", "triad over three times 2 MiB", 1, memory::stream),
    program("bulk", "rep-movsb", "rep movsb of 64 KiB", 4, memory::rep_movsb),
    program("chase", "chase-cached", "1000 loads, list of 16 KiB", 16, memory::chase_cached),
    program("chase", "chase-memory", "1000 loads, list of 64 MiB", 16, memory::chase_memory),
    program("system", "null-syscall", "getppid", 1000, system::null_syscall),
    program("system", "page-faults", "first touch of a page", 1024, system::page_faults),
    program("system", "pipe", "round trip between two processes", 100, system::pipe),
    program("system", "signals", "signal to itself", 100, system::signals),
    program("system", "fork", "fork, exit, wait", 8, system::fork),
    program("system", "exec", "fork, exec, exit, wait", 4, system::exec),
    program("system", "mmap", "mmap and munmap of 64 KiB", 100, system::mmap),
    program("shell", "gzip", "gzip of 128 KiB of text", 1, shell::gzip),
    program("shell", "sha256sum", "sha256sum of 512 KiB", 1, shell::sha256sum),
    program("shell", "sort-lines", "sort of 4000 lines", 1, shell::sort),
    program("shell", "awk", "awk over 4000 lines", 1, shell::awk),
    program("shell", "shell-loop", "2000 rounds of a shell loop", 1, shell::shell_loop),
    pair("scaling", "primes below 32768, two threads at once", 4, pair::scaling),
    pair("atomics", "atomic addition, two threads on one word", 10_000, pair::atomics),
    pair("futex", "round trip between two threads", 100, pair::futex),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_plain() {
        let names: BTreeSet<_> = PROGRAMS.iter().map(|program| program.name).collect();
        assert_eq!(names.len(), PROGRAMS.len());
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        assert!(names.iter().all(|name| name.chars().all(plain)));
    }

    #[test]
    fn fixed_work_has_the_same_result_each_time() {
        let folder = std::env::temp_dir().join(format!("programs-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let setting = Setting {
            busybox: PathBuf::from("/nonexistent"),
            folder: folder.clone(),
        };
        // The shell's need BusyBox; `exec` starts this very file, which is the tests here.
        let skipped = |p: &&Program| p.group != "shell" && p.name != "exec";
        for program in PROGRAMS.iter().filter(skipped) {
            let result = || match (program.start)(&setting) {
                Ok(mut work) => Some(work(program.fixed).unwrap()),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{}", program.name);
                    None
                }
            };
            assert_eq!(result(), result(), "{}", program.name);
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
