//! Tests with each of Debian's kernels, on one and on four processors.

/// Four tests of each function, which takes a kernel's package and a number of processors. They
/// are called like `function::cloud_kernel_on_1_processor`.
#[macro_export]
macro_rules! on_every_kernel {
    ($($test:ident),+ $(,)?) => {$(
        mod $test {
            use $crate::support::packages::{CLOUD, GENERIC};

            #[test]
            fn cloud_kernel_on_1_processor() {
                super::$test(CLOUD, 1);
            }

            #[test]
            fn cloud_kernel_on_4_processors() {
                super::$test(CLOUD, 4);
            }

            #[test]
            fn generic_kernel_on_1_processor() {
                super::$test(GENERIC, 1);
            }

            #[test]
            fn generic_kernel_on_4_processors() {
                super::$test(GENERIC, 4);
            }
        }
    )+};
}
