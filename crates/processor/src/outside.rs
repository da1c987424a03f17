//! What somebody outside may ask of a virtual processor between runs.

use crate::Vp;
use crate::mmu::{self, Access, Rights};
use crate::walk::WalkError;

/// How an address is to be translated for somebody outside.
#[derive(Clone, Copy, Debug)]
pub struct TranslateRequest {
    /// The access writes.
    pub write: bool,
    /// The access fetches.
    pub execute: bool,
    /// Check as CPL 3.
    pub user: bool,
    /// Check no rights.
    pub exempt: bool,
    /// Set accessed and dirty bits.
    pub mark: bool,
}

/// Why an address does not translate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TranslateFailure {
    /// No present entry.
    NotPresent,
    /// The rights forbid it.
    Protection,
    /// Reserved bits are set.
    Reserved,
    /// A table lies where no memory is.
    NoMemory,
}

impl Vp {
    /// Writes general register `index`, 0 to 15.
    pub fn set_general(&mut self, index: usize, value: u64) {
        if index < 16 {
            self.state.gpr[index] = value;
        }
    }

    /// Writes XMM register `index`, 0 to 15.
    pub fn set_xmm(&mut self, index: usize, value: u128) {
        self.state.fpu.set_xmm(index, value);
    }

    /// Translates a linear address of the current address space.
    ///
    /// # Errors
    ///
    /// See [`TranslateFailure`].
    pub fn translate(
        &mut self,
        linear: u64,
        request: TranslateRequest,
    ) -> Result<u64, TranslateFailure> {
        let access = match request {
            _ if request.exempt => Access::Read,
            TranslateRequest { execute: true, .. } => Access::Execute,
            TranslateRequest { write: true, .. } => Access::Write,
            _ => Access::Read,
        };
        let rights = if request.user && !request.exempt {
            Rights::User
        } else {
            Rights::SupervisorAc
        };
        if self.state.long_mode() && !mmu::canonical(linear) {
            return Err(TranslateFailure::NotPresent);
        }
        match self
            .mmu
            .walk(&self.state, linear, access, rights, request.mark)
        {
            Ok(walk) => Ok(walk.gpa),
            Err(WalkError::NotPresent) => Err(TranslateFailure::NotPresent),
            Err(WalkError::Protection) => Err(TranslateFailure::Protection),
            Err(WalkError::Reserved) => Err(TranslateFailure::Reserved),
            Err(WalkError::NoMemory) => Err(TranslateFailure::NoMemory),
        }
    }
}
