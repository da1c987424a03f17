//! Runs code on the host's own processor.
//!
//! Both ways in and out are signals. The test thread executes INT3; the
//! handler keeps the thread's registers and returns into the code under test
//! with the wanted ones (the kernel's signal return loads all of them, CS
//! included, which is also the way into compatibility mode). The code under
//! test ends at an INT3 or at a fault: the handler notes registers, vector,
//! error code and address, and returns to where the thread left.
//!
//! Handlers run on an alternate stack, so RSP may hold anything. FS base is
//! the thread's own and stays: tests address through it but do not change it.

use super::arena::{self, REGIONS, Rights, View};
use super::{Mode, Outcome, Registers, SMALL, SS_USER};
use std::arch::{asm, naked_asm};
use std::cell::Cell;
use std::ffi::c_void;
use std::os::fd::AsFd;

/// The native side of the oracle, for the thread that made it.
pub(super) struct Native {
    /// The arena's contents.
    pub(super) view: View,
    run: Box<Run>,
    stack: *mut c_void,
    before: Before,
    gs_base: u64,
}

/// The thread's signal handling, to be restored.
struct Before {
    stack: libc::stack_t,
    actions: [libc::sigaction; SIGNALS.len()],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Enter,
    Inside,
    Left,
}

/// What the handler works on.
struct Run {
    phase: Phase,
    entry: Registers,
    selectors: u64,
    host: [i64; 19],
    outcome: Outcome,
}

thread_local! {
    static RUN: Cell<*mut Run> = const { Cell::new(std::ptr::null_mut()) };
}

/// Where the ucontext keeps RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
const GREGS: [libc::c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];
const SIGNALS: [libc::c_int; 5] = [
    libc::SIGTRAP,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
];
const ALTERNATE_STACK: usize = 128 << 10;
const ARCH_SET_GS: libc::c_int = 0x1001;

impl Native {
    /// Maps the arena at its fixed addresses and takes over the thread's
    /// synchronous signals. One at a time per process.
    pub(super) fn new(gs_base: u64) -> std::io::Result<Self> {
        let view = map_arena()?;
        let (stack, before) = handlers()?;
        load_segments(gs_base);
        let run = Box::new(Run {
            phase: Phase::Idle,
            entry: Registers::default(),
            selectors: 0,
            host: [0; 19],
            outcome: Outcome::default(),
        });
        Ok(Self {
            view,
            run,
            stack,
            before,
            gs_base,
        })
    }

    /// The thread's FS base.
    pub(super) fn fs_base() -> u64 {
        let mut base = 0u64;
        const ARCH_GET_FS: libc::c_int = 0x1003;
        // SAFETY: the kernel writes one word.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_GET_FS, &raw mut base) };
        base
    }

    /// Runs from `entry.rip` to the next trap or fault. `segments`: DS, ES and
    /// GS may change and are put back.
    pub(super) fn run(&mut self, entry: &Registers, mode: Mode, segments: bool) -> Outcome {
        let [code, stack, data] = mode.segments().map(|segment| u64::from(segment.selector));
        if mode == Mode::Sixteen {
            load_data(data as u16);
        }
        let run = &raw mut *self.run;
        // SAFETY: `run` lives in a box of ours; nothing else refers to it.
        unsafe {
            (*run).phase = Phase::Enter;
            (*run).entry = *entry;
            (*run).selectors = code | stack << 48;
        }
        RUN.set(run);
        // SAFETY: the handler restores every register of this thread before
        // it comes back; the code under test is restricted to the arena.
        unsafe { asm!("int3") };
        RUN.set(std::ptr::null_mut());
        // SAFETY: as above; the handler is done with it.
        unsafe {
            assert_eq!((*run).phase, Phase::Left);
            (*run).phase = Phase::Idle;
            (*run).outcome.selectors = selectors();
            if segments || mode == Mode::Sixteen {
                load_segments(self.gs_base);
            }
            (*run).outcome
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: gives back what `new` took; nothing runs on the stack now.
        unsafe {
            for (signal, action) in SIGNALS.into_iter().zip(&self.before.actions) {
                libc::sigaction(signal, action, std::ptr::null_mut());
            }
            libc::sigaltstack(&raw const self.before.stack, std::ptr::null_mut());
            libc::munmap(self.stack, ALTERNATE_STACK);
            for region in REGIONS {
                libc::munmap(region.linear as *mut c_void, region.size as usize);
            }
            libc::munmap(self.view.bytes().as_mut_ptr().cast(), arena::SIZE as usize);
        }
    }
}

/// The thread's segments for tests.
fn load_segments(gs_base: u64) {
    // SAFETY: sets the unused GS base.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, gs_base) };
    load_data(SS_USER);
}

/// DS and ES; the selector is one of a data segment.
fn load_data(selector: u16) {
    // SAFETY: 64-bit code ignores both registers.
    unsafe { asm!("mov ds, {0:x}", "mov es, {0:x}", in(reg) u32::from(selector)) };
}

/// Puts the 16-bit segments into the process's local descriptor table.
pub(super) fn small_segments() -> std::io::Result<()> {
    /// As the kernel's `user_desc`.
    #[repr(C)]
    struct UserDesc {
        entry: u32,
        base: u32,
        limit: u32,
        flags: u32,
    }
    const WRITE: libc::c_int = 0x11;
    const CODE_CONTENTS: u32 = 2 << 1;
    for (i, segment) in SMALL.into_iter().enumerate() {
        let entry = UserDesc {
            entry: u32::from(segment.selector >> 3),
            base: segment.base as u32,
            limit: segment.limit,
            flags: if i == 0 { CODE_CONTENTS } else { 0 },
        };
        let size = size_of::<UserDesc>();
        // SAFETY: the kernel reads one descriptor; nothing of this process
        // uses the table otherwise.
        let failed =
            unsafe { libc::syscall(libc::SYS_modify_ldt, WRITE, &raw const entry, size) } != 0;
        if failed {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

/// DS, ES, GS.
fn selectors() -> [u16; 3] {
    let (ds, es, gs): (u32, u32, u32);
    // SAFETY: reads three selectors.
    unsafe {
        asm!("mov {0:e}, ds", "mov {1:e}, es", "mov {2:e}, gs", out(reg) ds, out(reg) es,
            out(reg) gs, options(nomem, nostack, preserves_flags));
    }
    [ds as u16, es as u16, gs as u16]
}

fn map_arena() -> std::io::Result<View> {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use rustix::mm::{MapFlags, ProtFlags, mmap};
    let file = memfd_create("oracle", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, arena::SIZE)?;
    let shared = MapFlags::SHARED | MapFlags::POPULATE;
    let both = ProtFlags::READ | ProtFlags::WRITE;
    let size = arena::SIZE as usize;
    // SAFETY: a new mapping wherever there is room.
    let view = unsafe { mmap(std::ptr::null_mut(), size, both, shared, file.as_fd(), 0)? };
    let mut offset = 0;
    for region in REGIONS {
        let rights = match region.rights {
            Rights::Code => ProtFlags::READ | ProtFlags::EXEC,
            Rights::Read => ProtFlags::READ,
            Rights::Write => both,
        };
        let fixed = shared | MapFlags::FIXED_NOREPLACE;
        let at = region.linear as *mut c_void;
        // SAFETY: replaces nothing: it fails where something is mapped.
        let got = unsafe {
            mmap(
                at,
                region.size as usize,
                rights,
                fixed,
                file.as_fd(),
                offset,
            )?
        };
        if got != at {
            return Err(std::io::ErrorKind::AddrInUse.into());
        }
        offset += region.size;
    }
    // SAFETY: mapped above for as long as the `Native` lives.
    Ok(unsafe { View::new(view.cast()) })
}

fn handlers() -> std::io::Result<(*mut c_void, Before)> {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
    let rights = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping wherever there is room.
    let stack = unsafe {
        mmap_anonymous(
            std::ptr::null_mut(),
            ALTERNATE_STACK,
            rights,
            MapFlags::PRIVATE,
        )?
    };
    let on = libc::stack_t {
        ss_sp: stack,
        ss_flags: 0,
        ss_size: ALTERNATE_STACK,
    };
    // SAFETY: the stack stays mapped until `Drop`; the handler is
    // async-signal-safe and leaves signals of other threads alone.
    unsafe {
        let mut before: Before = std::mem::zeroed();
        libc::sigaltstack(&raw const on, &raw mut before.stack);
        for (signal, old) in SIGNALS.into_iter().zip(&mut before.actions) {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = entry as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            libc::sigaction(signal, &raw const action, old);
        }
        Ok((stack, before))
    }
}

/// The code under test may have set AC, NT and ID, which the kernel hands on
/// to handlers: compiled code does not run with AC.
#[unsafe(naked)]
extern "C" fn entry(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    naked_asm!(
        "pushfq",
        "and qword ptr [rsp], {keep}",
        "popfq",
        "jmp {handler}",
        keep = const !0x24_4000i32,
        handler = sym handler,
    )
}

extern "C" fn handler(signal: libc::c_int, _info: *mut libc::siginfo_t, context: *mut c_void) {
    let run = RUN.get();
    if run.is_null() {
        // Not ours: let it end the process when it repeats.
        // SAFETY: async-signal-safe.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    // SAFETY: the kernel's ucontext; `run` is set by the thread that is
    // interrupted here, and it waits.
    let (context, run) = unsafe { (&mut *context.cast::<libc::ucontext_t>(), &mut *run) };
    let gregs = &mut context.uc_mcontext.gregs;
    match run.phase {
        Phase::Enter => {
            run.host.copy_from_slice(&gregs[..19]);
            for (slot, value) in GREGS.into_iter().zip(run.entry.gpr) {
                gregs[slot as usize] = value as i64;
            }
            gregs[libc::REG_RIP as usize] = run.entry.rip as i64;
            gregs[libc::REG_EFL as usize] = run.entry.rflags as i64;
            gregs[libc::REG_CSGSFS as usize] = run.selectors as i64;
            run.phase = Phase::Inside;
        }
        Phase::Inside => {
            let registers = &mut run.outcome.registers;
            for (slot, value) in GREGS.into_iter().zip(&mut registers.gpr) {
                *value = gregs[slot as usize] as u64;
            }
            registers.rip = gregs[libc::REG_RIP as usize] as u64;
            registers.rflags = gregs[libc::REG_EFL as usize] as u64;
            run.outcome.cs = gregs[libc::REG_CSGSFS as usize] as u16;
            run.outcome.vector = gregs[libc::REG_TRAPNO as usize] as u8;
            run.outcome.error = gregs[libc::REG_ERR as usize] as u32;
            run.outcome.address = gregs[libc::REG_CR2 as usize] as u64;
            gregs[..19].copy_from_slice(&run.host);
            run.phase = Phase::Left;
        }
        Phase::Idle | Phase::Left => {
            // SAFETY: async-signal-safe.
            unsafe { libc::abort() };
        }
    }
}
