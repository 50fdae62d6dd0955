#![no_std]
//! t
pub mod sys;
