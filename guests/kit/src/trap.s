# Entries of the 256 vectors, and the recovery points of trap::attempt.

    .section .text.kit_vectors, "ax"
    .code64
    .balign 16
    .global kit_vectors
kit_vectors:
    .set vector, 0
    .rept 256
    .balign 16
    .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21)
    .else
    .byte 0x6A, 0x00
    .endif
    .byte 0x68
    .long vector
    .byte 0xE9
    .long kit_trap_common - . - 4
    .set vector, vector + 1
    .endr

kit_trap_common:
    push rax
    push rcx
    push rdx
    push rbx
    push rbp
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    cld
    mov rdi, rsp
    mov rbp, rsp
    # The handler is compiled code and may use SSE whatever the test did to CR0 and CR4.
    mov rbx, cr0
    mov rax, rbx
    and rax, -13
    cmp rax, rbx
    je .Lcr0_good
    mov cr0, rax
.Lcr0_good:
    mov r12, cr4
    mov rax, r12
    or rax, 0x200
    cmp rax, r12
    je .Lcr4_good
    mov cr4, rax
.Lcr4_good:
    sub rsp, 512
    and rsp, -16
    fxsave64 [rsp]
    call kit_trap
    fxrstor64 [rsp]
    mov rsp, rbp
    mov rax, cr4
    cmp rax, r12
    je .Lcr4_kept
    mov cr4, r12
.Lcr4_kept:
    mov rax, cr0
    cmp rax, rbx
    je .Lcr0_kept
    mov cr0, rbx
.Lcr0_kept:
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rbp
    pop rbx
    pop rdx
    pop rcx
    pop rax
    add rsp, 16
    iretq

# extern "C" fn kit_attempt(code, data, recovery) -> u64: 0 when code(data) returned, 1 when it faulted
    .global kit_attempt
kit_attempt:
    pushfq
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [rdx], rsp
    mov rax, cr0
    mov [rdx + 8], rax
    mov rax, cr3
    mov [rdx + 16], rax
    mov rax, cr4
    mov [rdx + 24], rax
    mov rax, rdi
    mov rdi, rsi
    call rax
    xor eax, eax
.Lattempt_end:
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    popfq
    ret

# The trap handler returns here, RDI the recovery and RSP as saved in it.
    .global kit_recover
kit_recover:
    mov rcx, cr4
    mov rdx, [rdi + 24]
    mov rax, cr3
    cmp rax, [rdi + 16]
    je .Lcr3_same
    mov rax, [rdi + 16]
    mov cr3, rax
.Lcr3_same:
    cmp rcx, rdx
    je .Lcr4_same
    mov cr4, rdx
.Lcr4_same:
    mov rax, cr0
    cmp rax, [rdi + 8]
    je .Lcr0_same
    mov rax, [rdi + 8]
    mov cr0, rax
.Lcr0_same:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov eax, 1
    jmp .Lattempt_end

# User code returns here with its result in RAX.
    .global kit_user_return
kit_user_return:
    int 0x81
    .text
