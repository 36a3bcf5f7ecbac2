//! candle-ds4
