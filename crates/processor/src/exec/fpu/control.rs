//! Control and status words, EMMS, fences, prefetches and cache line flushes.

use super::MXCSR_MASK;
use crate::Vp;
use crate::decode::Selected;
use crate::fault::Step;
use crate::host;
use crate::mmu::Access;
use crate::op::{Op, OpFn};
use crate::state::reg;
use iced_x86::{Code, Instruction, Mnemonic};

/// The handler for one of these.
pub(super) fn select(instruction: &Instruction) -> Option<Selected> {
    use Mnemonic as M;
    let run: OpFn = match instruction.mnemonic() {
        M::Ldmxcsr => sse_load_mxcsr,
        M::Stmxcsr => sse_store_mxcsr,
        M::Emms => empty_mmx,
        M::Mfence => full_fence,
        M::Lfence | M::Sfence => other_fence,
        M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetch
        | M::Prefetchw => prefetch,
        M::Clflush => flush_line,
        M::Clflushopt if host_flushes() => flush_line,
        M::Fldcw => load_control,
        M::Fnstcw => store_control,
        M::Fnstsw if instruction.code() == Code::Fnstsw_AX => status_to_ax,
        M::Fnstsw => store_status,
        M::Fnclex => clear_exceptions,
        M::Fninit => initialize,
        // 8087 and 80287 leftovers.
        M::Fneni | M::Fndisi | M::Fnsetpm => nothing,
        _ => return None,
    };
    Selected::plain(run)
}

/// CLFLUSHOPT is offered where the host has it (CPUID.7.EBX bit 23).
fn host_flushes() -> bool {
    std::arch::x86_64::__cpuid_count(7, 0).ebx & 1 << 23 != 0
}

fn sse_load_mxcsr(vp: &mut Vp, op: &Op) -> Step {
    vp.check_sse()?;
    load_mxcsr(vp, op)
}

fn sse_store_mxcsr(vp: &mut Vp, op: &Op) -> Step {
    vp.check_sse()?;
    store_mxcsr(vp, op)
}

/// LDMXCSR and VLDMXCSR once they are allowed: reserved bits are #GP(0).
pub(crate) fn load_mxcsr(vp: &mut Vp, op: &Op) -> Step {
    let linear = vp.linear(op, 4, Access::Read)?;
    let value = vp.load::<u32>(linear)?;
    if value & !MXCSR_MASK != 0 {
        return Err(vp.gp(0));
    }
    vp.state.fpu.set_mxcsr(value);
    Ok(())
}

/// STMXCSR and VSTMXCSR once they are allowed.
pub(crate) fn store_mxcsr(vp: &mut Vp, op: &Op) -> Step {
    let linear = vp.linear(op, 4, Access::Write)?;
    vp.store(linear, vp.state.fpu.mxcsr())
}

fn empty_mmx(vp: &mut Vp, _op: &Op) -> Step {
    vp.check_mmx()?;
    vp.state.fpu.enter_mmx();
    vp.state.fpu.set_tags(0);
    Ok(())
}

fn full_fence(_vp: &mut Vp, _op: &Op) -> Step {
    host::fence();
    Ok(())
}

/// LFENCE and SFENCE: guest loads and stores are ordinary ones of the host in
/// program order, so only the compiler would have to be held.
fn other_fence(_vp: &mut Vp, _op: &Op) -> Step {
    std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
    Ok(())
}

/// A hint, which never faults.
fn prefetch(_vp: &mut Vp, _op: &Op) -> Step {
    Ok(())
}

/// CLFLUSH, CLFLUSHOPT: checked like a load of one byte; caches are coherent,
/// so nothing is left to do but keep order.
fn flush_line(vp: &mut Vp, op: &Op) -> Step {
    let linear = vp.linear(op, 1, Access::Read)?;
    vp.check_access(linear, 1, Access::Read)?;
    host::fence();
    Ok(())
}

fn load_control(vp: &mut Vp, op: &Op) -> Step {
    vp.check_x87_waiting()?;
    let linear = vp.linear(op, 2, Access::Read)?;
    let control = vp.load::<u16>(linear)?;
    let status = vp.state.fpu.status();
    vp.state.fpu.set_control_status(control, status);
    Ok(())
}

fn store_control(vp: &mut Vp, op: &Op) -> Step {
    vp.check_x87()?;
    let linear = vp.linear(op, 2, Access::Write)?;
    vp.store(linear, vp.state.fpu.control())
}

fn store_status(vp: &mut Vp, op: &Op) -> Step {
    vp.check_x87()?;
    let linear = vp.linear(op, 2, Access::Write)?;
    vp.store(linear, vp.state.fpu.status())
}

fn status_to_ax(vp: &mut Vp, _op: &Op) -> Step {
    vp.check_x87()?;
    let status = u64::from(vp.state.fpu.status());
    vp.set_gpr(2, reg::RAX as u8, status);
    Ok(())
}

fn clear_exceptions(vp: &mut Vp, _op: &Op) -> Step {
    vp.check_x87()?;
    let (control, status) = (vp.state.fpu.control(), vp.state.fpu.status());
    vp.state.fpu.set_control_status(control, status & 0x7f00);
    Ok(())
}

fn initialize(vp: &mut Vp, _op: &Op) -> Step {
    vp.check_x87()?;
    vp.state.fpu.initialize_x87();
    Ok(())
}

fn nothing(vp: &mut Vp, _op: &Op) -> Step {
    vp.check_x87()
}
