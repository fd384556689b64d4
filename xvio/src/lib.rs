//! xvio
