//! `loader_*`: kernels of each format, broken in every way.
//!
//! The first bytes of an input are the machine: see [`Machine::take`]. What
//! follows is the kernel file, except that a bzImage or multiboot image may be
//! put together around it, so that mutations need not get past a magic number
//! or a checksum first.

use crate::Input;
use crate::memory;
use std::ops::Range;
use vmwp::loader::layout::{GIB, MIB};
use vmwp::loader::{BootConfig, LoadPlan, MemoryMap, load};

/// What a load may allocate besides what it unpacks: the dictionaries of the
/// decompressors, at most 256 MiB each by the loader's own limits.
const WORKING_MEMORY: u64 = 320 * MIB;

/// The machine to load for.
struct Machine<'a> {
    memory_bytes: u64,
    initrd: Option<&'a [u8]>,
    cmdline: Option<String>,
    processors: u32,
    test_device: bool,
}

impl<'a> Machine<'a> {
    /// A byte of choices (bits 0 to 1 memory, 2 initrd, 3 command line, 4 test
    /// device), then the lengths and contents that they ask for.
    fn take(input: &mut Input<'a>) -> Self {
        let choice = input.u8();
        let memory_bytes = [16 * MIB, 17 * MIB + 4096, 64 * MIB, 5 * GIB][usize::from(choice & 3)];
        let initrd = (choice & 4 != 0).then(|| {
            let length = usize::from(input.u8());
            input.bytes(length)
        });
        let cmdline = (choice & 8 != 0).then(|| {
            let length = usize::from(input.u8());
            let text = String::from_utf8_lossy(input.bytes(length)).into_owned();
            // Every 16th is longer than any kernel takes.
            if length % 16 == 15 {
                text.repeat(300)
            } else {
                text
            }
        });
        Self {
            memory_bytes,
            initrd,
            cmdline,
            processors: u32::from(choice >> 5) + 1,
            test_device: choice & 16 != 0,
        }
    }

    /// Loads `kernel`, and checks what comes of it.
    fn load(&self, kernel: &[u8]) {
        // The unpacked kernel while its buffer grows, and its copy in the plan.
        let unpacked = 4 * self.memory_bytes.min(64 * MIB);
        memory::limited((unpacked + WORKING_MEMORY) as usize, || {
            let config = BootConfig {
                kernel,
                kernel_name: "kernel",
                initrd: self.initrd,
                cmdline: self.cmdline.as_deref(),
                memory_bytes: self.memory_bytes,
                processors: self.processors,
                test_device: self.test_device,
            };
            match load(&config) {
                Ok(plan) => check(&plan, &MemoryMap::for_size(self.memory_bytes)),
                Err(error) => {
                    let text = error.to_string();
                    assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
                }
            }
        });
    }
}

/// Everything in the plan lies in RAM, and nothing overlaps.
fn check(plan: &LoadPlan<'_>, map: &MemoryMap) {
    let mut ranges: Vec<Range<u64>> = plan.zero.clone();
    for segment in &plan.segments {
        let length = segment.bytes().len() as u64;
        ranges.push(segment.gpa..segment.gpa + length);
    }
    ranges.sort_by_key(|range| range.start);
    for range in &ranges {
        assert!(range.start <= range.end);
        assert!(
            map.is_usable(range.start, range.end - range.start),
            "{range:x?}"
        );
    }
    for pair in ranges.windows(2) {
        assert!(pair[0].end <= pair[1].start, "{pair:x?}");
    }
}

/// Target `loader_bzimage`: after the machine, a byte that is 0 for a whole
/// file, else 1 plus a compression; then for these 16 bytes for the header's
/// fields, and the payload without its magic.
pub fn run_bzimage(data: &[u8]) {
    let mut input = Input::new(data);
    let mut machine = Machine::take(&mut input);
    // So that the largest kernel that may be unpacked is unpacked soon.
    machine.memory_bytes = machine.memory_bytes.min(18 * MIB);
    let kernel = match input.u8() {
        0 => input.rest().to_vec(),
        compression => bzimage(compression, &mut input),
    };
    machine.load(&kernel);
}

/// First bytes of payloads.
pub const MAGICS: [&[u8]; 7] = [
    b"",
    &[0x1f, 0x8b],
    &[0xfd, b'7', b'z', b'X', b'Z', 0],
    &[0x5d, 0, 0],
    &[0x02, 0x21, 0x4c, 0x18],
    &[0x28, 0xb5, 0x2f, 0xfd],
    b"\x7fELF",
];

fn bzimage(compression: u8, input: &mut Input<'_>) -> Vec<u8> {
    let fields = input.bytes(16);
    let field = |at: usize| fields.get(at).copied().unwrap_or(0);
    let magic = MAGICS[usize::from(compression) % MAGICS.len()];
    let payload = [magic, input.rest()].concat();
    let setup_sectors = 1 + field(0) % 8;
    let length = 512 * (usize::from(setup_sectors) + 1) + 64;
    let mut image = vec![0; length];
    image[0x1f1] = setup_sectors;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x201] = 0x6a_u8.wrapping_add(field(1));
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&[0xf_u8.wrapping_sub(field(2)), 2]);
    image[0x211] = 1 ^ field(3);
    image[0x22c..0x230].copy_from_slice(&[0xff, 0xff, 0xff ^ field(4), 0x7f ^ field(5)]);
    image[0x238..0x23c].copy_from_slice(&[0xff ^ field(6), 7 ^ field(7), field(8), 0]);
    let offset = 64_u32.wrapping_add(u32::from_le_bytes([field(9), field(10), 0, field(11)]));
    image[0x248..0x24c].copy_from_slice(&offset.to_le_bytes());
    let off_by = i32::from(field(12) as i8) << (field(13) % 24);
    let size = (payload.len() as u32).wrapping_add_signed(off_by);
    image[0x24c..0x250].copy_from_slice(&size.to_le_bytes());
    image.extend_from_slice(&payload);
    image
}

/// Target `loader_elf`: after the machine, the file.
pub fn run_elf(data: &[u8]) {
    let mut input = Input::new(data);
    let machine = Machine::take(&mut input);
    machine.load(input.rest());
}

/// Target `loader_multiboot`: after the machine, a byte whose bit 0 asks for
/// the checksum of a header at byte 4 times its other bits to be made right;
/// then the file.
pub fn run_multiboot(data: &[u8]) {
    let mut input = Input::new(data);
    let machine = Machine::take(&mut input);
    let choice = input.u8();
    let mut kernel = input.rest().to_vec();
    if choice & 1 != 0 {
        let at = usize::from(choice >> 1) * 4;
        if let Some(header) = kernel.get_mut(at..at + 12) {
            let magic = 0x1bad_b002_u32;
            let flags = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
            let checksum = 0_u32.wrapping_sub(magic).wrapping_sub(flags);
            header[..4].copy_from_slice(&magic.to_le_bytes());
            header[8..].copy_from_slice(&checksum.to_le_bytes());
        }
    }
    machine.load(&kernel);
}
