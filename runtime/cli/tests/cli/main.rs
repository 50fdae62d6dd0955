//! The program, run: each verb on real files, what it says held against files and schemas, how it ends.

mod doctor;
mod explain;
mod image;
mod program;
mod recording;
mod support;
mod workingset;
