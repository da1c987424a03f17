//! `hypercall`: a child with two virtual processors and its parent do whatever
//! the input says to the hypervisor.
//!
//! An input is a list of operations ([`op`]), each a byte (modulo
//! [`op::COUNT`]) followed by its own bytes. Half of the privileges and of the
//! partition's state are the input's to choose by calls, so seeds matter more
//! here than elsewhere; see the example `seeds`.

mod platform;
mod processor;

use crate::{Input, memory};
use hypervisor::processor::{CpuMode, Exit};
use hypervisor::{Hypervisor, HypervisorConfig, RunOutcome};
use platform::FakePlatform;
use processor::FakeProcessor;
use std::sync::Arc;
use tlfs::{
    HvHypercallControl, HvMapGpaFlags, HvPartitionCreationFlags, HvPartitionId,
    HvPartitionPrivilegeMask, HvPartitionPropertyCode,
};
use winhv::{Transport, WinHv};

/// The operations.
pub mod op {
    /// A hypercall of the guest: choices ([`super::choice`]), index into
    /// [`super::CALLS`], rep count (2), rep start, variable header, length and
    /// parameter block.
    pub const GUEST_CALL: u8 = 0;
    /// A hypercall of the root: the same, but the length is in units of 4.
    pub const ROOT_CALL: u8 = 1;
    /// WRMSR: virtual processor, index into [`super::MSRS`], value (8).
    pub const WRITE_MSR: u8 = 2;
    /// RDMSR.
    pub const READ_MSR: u8 = 3;
    /// A store to the APIC's page: virtual processor, offset / 4, value (4).
    pub const WRITE_APIC: u8 = 4;
    /// A load from it, of any size: virtual processor, offset (2), size.
    pub const READ_APIC: u8 = 5;
    /// Another exit: virtual processor, which, value (8).
    pub const EXIT: u8 = 6;
    /// Time passes: how many bits (1), ticks (8).
    pub const TIME: u8 = 7;
    /// Guest memory is written: address (2, of 8-byte words), contents (8).
    pub const STORE: u8 = 8;
    /// The processor's mode, level and interruptibility.
    pub const MODE: u8 = 9;
    /// A hypercall control word of any 64 bits, with any addresses.
    pub const RAW_CALL: u8 = 10;
    /// How many there are.
    pub const COUNT: u8 = 11;
}

/// Choices of a hypercall.
pub mod choice {
    /// Virtual processor 1 and not 0.
    pub const SECOND_VP: u8 = 1;
    /// A fast call.
    pub const FAST: u8 = 2;
    /// Parameters at the end of the pages that are mapped.
    pub const AT_EDGE: u8 = 4;
    /// The parameter page is as earlier operations left it.
    pub const KEEP: u8 = 8;
    /// The root lends the virtual processor to its call.
    pub const LEND: u8 = 16;
    /// The intercept that ends an operation stays unanswered.
    pub const UNANSWERED: u8 = 32;
}

/// Call codes that an operation chooses from.
pub const CALLS: [u16; 53] = [
    0x02, 0x03, 0x08, 0x0b, 0x13, 0x14, 0x15, 0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48,
    0x49, 0x4a, 0x4b, 0x4c, 0x4d, 0x4e, 0x4f, 0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58,
    0x59, 0x5b, 0x5c, 0x5d, 0x6e, 0x7b, 0x91, 0x92, 0x94, 0x95, 0x96, 0x99, 0x9a, 0xac, 0xc0, 0xc1,
    0x8001, 0x01, 0x11, 0x8002, 0xffff,
];

/// MSRs that an operation chooses from.
pub const MSRS: [u32; 88] = [
    0x4000_0000,
    0x4000_0001,
    0x4000_0002,
    0x4000_0003,
    0x4000_0010,
    0x4000_0020,
    0x4000_0021,
    0x4000_0022,
    0x4000_0023,
    0x4000_0040,
    0x4000_0070,
    0x4000_0071,
    0x4000_0072,
    0x4000_0073,
    0x4000_0080,
    0x4000_0081,
    0x4000_0082,
    0x4000_0083,
    0x4000_0084,
    0x4000_0085,
    0x4000_0090,
    0x4000_0091,
    0x4000_0092,
    0x4000_0093,
    0x4000_0094,
    0x4000_0095,
    0x4000_0096,
    0x4000_0097,
    0x4000_0098,
    0x4000_0099,
    0x4000_009a,
    0x4000_009b,
    0x4000_009c,
    0x4000_009d,
    0x4000_009e,
    0x4000_009f,
    0x4000_00b0,
    0x4000_00b1,
    0x4000_00b2,
    0x4000_00b3,
    0x4000_00b4,
    0x4000_00b5,
    0x4000_00b6,
    0x4000_00b7,
    0x4000_00f0,
    0x4000_0100,
    0x4000_0101,
    0x4000_0102,
    0x4000_0103,
    0x4000_0104,
    0x4000_0105,
    0x4000_0106,
    0x4000_0107,
    0x4000_0108,
    0x4000_0118,
    0x1b,
    0x6e0,
    0x802,
    0x803,
    0x808,
    0x80a,
    0x80b,
    0x80d,
    0x80f,
    0x810,
    0x817,
    0x818,
    0x820,
    0x828,
    0x82f,
    0x830,
    0x831,
    0x832,
    0x833,
    0x834,
    0x835,
    0x836,
    0x837,
    0x838,
    0x839,
    0x83e,
    0x83f,
    0x8ff,
    0x10,
    0x174,
    0x277,
    0x4000_0200,
    0x4fff_ffff,
];

/// Guest page of the parameters.
pub const INPUT_PAGE: u64 = 2;
/// Guest page of the results.
pub const OUTPUT_PAGE: u64 = 3;
const RAM_SPA_PAGE: u64 = 0x40;
const RAM_PAGES: u64 = 0x40;
const POOL_SPA_PAGE: u64 = 0x80;
const POOL_PAGES: u64 = 16;
/// Operations of one input.
const MOST_OPERATIONS: usize = 64;
/// What one input may make the hypervisor allocate.
const MEMORY: usize = 48 << 20;

/// Runs one input.
pub fn run(data: &[u8]) {
    memory::limited(MEMORY, || {
        let mut machine = Machine::new();
        let mut input = Input::new(data);
        for _ in 0..MOST_OPERATIONS {
            if input.is_empty() {
                break;
            }
            machine.operation(&mut input);
        }
        machine.check();
    });
}

/// The transport of the root.
struct Root(Arc<Hypervisor>);

impl Transport for Root {
    fn hypercall(&self, control: u64, input: &[u8], output: &mut [u8]) -> u64 {
        self.0.root_hypercall(control, input, output)
    }
}

struct Machine {
    platform: Arc<FakePlatform>,
    hypervisor: Arc<Hypervisor>,
    winhv: WinHv<Root>,
    child: HvPartitionId,
    cpus: [FakeProcessor; 2],
}

/// What a call operation says.
struct Call<'a> {
    choice: u8,
    vp: u32,
    control: HvHypercallControl,
    data: &'a [u8],
}

impl<'a> Call<'a> {
    fn take(input: &mut Input<'a>, unit: usize) -> Self {
        let choice = input.u8();
        let code = CALLS[usize::from(input.u8()) % CALLS.len()];
        let mut control = u64::from(code);
        control |= u64::from(input.u16() & 0xfff) << 32;
        control |= u64::from(input.u8()) << 48;
        control |= u64::from(input.u8()) << 17;
        control |= u64::from(choice & choice::FAST != 0) << 16;
        let length = usize::from(input.u8()) * unit;
        Self {
            choice,
            vp: u32::from(choice & choice::SECOND_VP),
            control: HvHypercallControl(control),
            data: input.bytes(length),
        }
    }
}

impl Machine {
    /// A child with every privilege that is no root's.
    fn new() -> Self {
        let platform = Arc::new(FakePlatform::new());
        let hypervisor = Arc::new(Hypervisor::new(
            platform.clone(),
            HypervisorConfig::default(),
        ));
        let winhv = WinHv::new(Root(hypervisor.clone()));
        let flags =
            HvPartitionCreationFlags::LAPIC_ENABLED | HvPartitionCreationFlags::X2APIC_CAPABLE;
        let child = winhv.create_partition(flags).expect("a partition");
        let privileges = HvPartitionPrivilegeMask::all() - HvPartitionPrivilegeMask::CPU_MANAGEMENT;
        let code = HvPartitionPropertyCode::PRIVILEGE_FLAGS;
        winhv
            .set_partition_property(child, code, privileges.bits())
            .expect("privileges");
        let pool = POOL_SPA_PAGE..POOL_SPA_PAGE + POOL_PAGES;
        winhv.deposit_memory(child, pool).expect("a pool");
        winhv
            .initialize_partition(child)
            .expect("an active partition");
        let ram = RAM_SPA_PAGE..RAM_SPA_PAGE + RAM_PAGES;
        winhv
            .map_gpa_pages(child, 0, ram, HvMapGpaFlags::ALL_RIGHTS)
            .expect("memory");
        for vp in 0..2 {
            winhv.create_vp(child, vp).expect("a virtual processor");
            winhv
                .set_explicit_suspend(child, vp, false)
                .expect("one that runs");
        }
        let cpus = [(); 2].map(|()| FakeProcessor::new(platform.clone()));
        Self {
            platform,
            hypervisor,
            winhv,
            child,
            cpus,
        }
    }

    fn operation(&mut self, input: &mut Input<'_>) {
        match input.u8() % op::COUNT {
            op::GUEST_CALL => self.guest_call(&Call::take(input, 1)),
            op::ROOT_CALL => self.root_call(&Call::take(input, 4)),
            op::WRITE_MSR => {
                let (vp, index) = msr(input);
                let value = input.u64();
                self.exit(vp, Exit::WriteMsr { index, value });
            }
            op::READ_MSR => {
                let (vp, index) = msr(input);
                self.exit(vp, Exit::ReadMsr { index });
            }
            op::WRITE_APIC => {
                let vp = input.u8();
                let gpa = 0xfee0_0000 + 4 * u64::from(input.u8());
                let value = u64::from(input.u32());
                self.exit(
                    vp,
                    Exit::MmioWrite {
                        gpa,
                        size: 4,
                        value,
                    },
                );
            }
            op::READ_APIC => {
                let vp = input.u8();
                let gpa = 0xfee0_0000 + u64::from(input.u16() & 0xfff);
                let size = (1 << (input.u8() & 3)).min(0x1000 - (gpa & 0xfff)) as u8;
                self.exit(vp, Exit::MmioRead { gpa, size });
            }
            op::EXIT => self.other_exit(input),
            op::TIME => {
                let bits = u32::from(input.u8() & 63);
                self.platform.advance(input.u64() & ((1 << bits) - 1));
            }
            op::STORE => {
                let word = u64::from(input.u16()) % (RAM_PAGES << 9);
                self.store(word * 8, &input.u64().to_le_bytes());
            }
            op::MODE => self.mode(input),
            _ => self.raw_call(input),
        }
    }

    fn store(&self, gpa: u64, data: &[u8]) {
        use hypervisor::Platform;
        let spa = (RAM_SPA_PAGE << 12) + gpa;
        self.platform.write(spa, data).expect("RAM is memory");
    }

    fn mode(&mut self, input: &mut Input<'_>) {
        let cpu = &mut self.cpus[usize::from(input.u8() & 1)];
        cpu.mode = match input.u8() % 8 {
            0 => CpuMode::Real,
            1 => CpuMode::Virtual8086,
            2 => CpuMode::Protected,
            3 => CpuMode::Compatibility,
            _ => CpuMode::Long64,
        };
        let more = input.u8();
        cpu.cpl = more & 3;
        cpu.interruptible = more & 4 == 0;
    }

    fn guest_call(&mut self, call: &Call<'_>) {
        let length = call.data.len() as u64;
        let (mut input, mut output) = (INPUT_PAGE << 12, OUTPUT_PAGE << 12);
        if call.choice & choice::AT_EDGE != 0 {
            input = (RAM_PAGES << 12) - ((length + 7) & !7);
            output = (RAM_PAGES << 12) - 8;
        }
        if call.control.fast() {
            self.registers(call.vp, call.control.0, call.data);
        } else {
            if call.choice & choice::KEEP == 0 {
                self.store(input, call.data);
            }
            let addresses = [input.to_le_bytes(), output.to_le_bytes()].concat();
            self.registers(call.vp, call.control.0, &addresses);
        }
        self.exit(call.choice, Exit::Hypercall);
    }

    fn raw_call(&mut self, input: &mut Input<'_>) {
        let vp = input.u8();
        let control = input.u64();
        self.registers(u32::from(vp & 1), control, input.bytes(112));
        self.exit(vp, Exit::Hypercall);
    }

    /// Sets the registers of a hypercall, as 64-bit and as 32-bit code would.
    fn registers(&mut self, vp: u32, control: u64, block: &[u8]) {
        let cpu = &mut self.cpus[vp as usize & 1];
        let mut block = Input::new(block);
        let (first, second) = (block.u64(), block.u64());
        for xmm in &mut cpu.xmms[..6] {
            *xmm = u128::from(block.u64()) | u128::from(block.u64()) << 64;
        }
        if cpu.mode == CpuMode::Long64 {
            (cpu.gprs[1], cpu.gprs[2], cpu.gprs[8]) = (control, first, second);
            return;
        }
        // EDX:EAX, EBX:ECX, EDI:ESI; the upper halves are none of its business.
        let garbage = 0xdead_beef << 32;
        for ([high, low], value) in [([2, 0], control), ([3, 1], first), ([7, 6], second)] {
            cpu.gprs[high] = garbage | value >> 32;
            cpu.gprs[low] = garbage | value & 0xffff_ffff;
        }
    }

    fn root_call(&mut self, call: &Call<'_>) {
        let mut input = [0; 4096];
        let length = call.data.len().min(4096);
        input[..length].copy_from_slice(&call.data[..length]);
        let size = match (call.control.fast(), call.choice & choice::KEEP != 0) {
            (true, _) => 112,
            (_, true) => length,
            _ => 4096,
        };
        let mut output = [0; 4096];
        let (input, output) = (&input[..size], &mut output[..size]);
        if call.choice & choice::LEND != 0 {
            let cpu = &mut self.cpus[call.vp as usize & 1];
            let vp = (self.child, call.vp);
            self.hypervisor
                .root_hypercall_for_vp(call.control.0, input, output, vp, cpu);
        } else {
            self.hypervisor
                .root_hypercall(call.control.0, input, output);
        }
    }

    fn other_exit(&mut self, input: &mut Input<'_>) {
        let vp = input.u8();
        let which = input.u8();
        let value = input.u64();
        let size = 1 << (value >> 56 & 3);
        let gpa = value & 0xffff_ffff_fff8;
        let exit = match which % 12 {
            0 => Exit::Cpuid {
                leaf: 0x4000_0000 | value as u32 & 0xff,
                subleaf: (value >> 32) as u32,
                default: [value as u32; 4],
            },
            1 => Exit::Cpuid {
                leaf: value as u32,
                subleaf: 0,
                default: [!0; 4],
            },
            2 => Exit::ReadCr8,
            3 => Exit::WriteCr8 {
                value: value as u8 & 15,
            },
            4 => Exit::IoWrite {
                port: value as u16,
                size: size.min(4),
                value: value as u32,
            },
            5 => Exit::IoRead {
                port: value as u16,
                size: size.min(4),
            },
            6 => Exit::MmioRead { gpa, size },
            7 => Exit::MmioWrite {
                gpa,
                size,
                value: value >> 8,
            },
            8 => Exit::Halt,
            9 => Exit::InterruptWindow,
            10 => Exit::Kicked,
            _ => Exit::TripleFault,
        };
        self.exit(vp, exit);
    }

    /// The guest leaves with `exit`, and once that is dealt with by an access
    /// to a port, which the parent answers.
    fn exit(&mut self, choice: u8, exit: Exit) {
        let index = u32::from(choice & choice::SECOND_VP);
        let cpu = &mut self.cpus[index as usize];
        cpu.next = Some(exit);
        for _ in 0..4 {
            match self.hypervisor.run_vp(self.child, index, cpu) {
                RunOutcome::Intercept(message) => {
                    assert!(usize::from(message.header.payload_size) <= 240);
                    if choice & choice::UNANSWERED != 0 {
                        return;
                    }
                    let value = u128::from(choice);
                    let _ = self.winhv.complete_intercept(self.child, index, value);
                }
                RunOutcome::ApicEoi { .. } => {}
                RunOutcome::Crash(report) => {
                    assert!(report.message.is_none_or(|text| text.len() <= 4096));
                }
                _ => return,
            }
            if cpu.next.is_none() {
                return;
            }
        }
    }

    /// The hypervisor still answers.
    fn check(&self) {
        for vp in 0..2 {
            let _ = self.hypervisor.vp_has_work(self.child, vp);
        }
        let _ = self.hypervisor.reference_time(self.child);
        if let Some(map) = self.hypervisor.gpa_map(self.child) {
            for page in 0..2 * RAM_PAGES {
                let _ = map.lookup(page);
            }
        }
    }
}

fn msr(input: &mut Input<'_>) -> (u8, u32) {
    let vp = input.u8();
    (vp, MSRS[usize::from(input.u8()) % MSRS.len()])
}
